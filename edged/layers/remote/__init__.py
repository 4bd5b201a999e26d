"""Stages on other hosts."""
