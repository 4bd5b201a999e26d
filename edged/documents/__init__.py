"""Local documents: read, cut, stored, indexed, searched."""
