"""Public helpers for tests of adapters and stages."""
