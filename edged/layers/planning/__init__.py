"""Who would hold which layers, what that costs and what it buys. Pure, but for `measure.py`."""
