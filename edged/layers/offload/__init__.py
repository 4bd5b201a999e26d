"""Stages with more layers than their device holds: weights and cache come and go."""
