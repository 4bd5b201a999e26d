"""Other ways to serve the same pipeline: one module a program, all doing the work of `work.py`."""
