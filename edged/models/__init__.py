"""Weights on this machine: fetched, verified, derived, kept."""

from edged.models.store import ModelStore, Row

__all__ = ["ModelStore", "Row"]
