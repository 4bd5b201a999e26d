"""Adapters of runtimes to the seam in `edged.backend`, one file each, found by entry point."""
