"""Measurements of edged: every figure in its documents comes from `python -m benchmarks ID`."""
