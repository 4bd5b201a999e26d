"""Measurements: every row of the goals, and what the manifests of models/ state."""
