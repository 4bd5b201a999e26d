"""Load on a running daemon, and what it did with it: behind `edgectl bench`."""
