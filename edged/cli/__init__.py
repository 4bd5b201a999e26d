"""`edgectl`: what an operator types, one file per noun."""

from __future__ import annotations


def main() -> None:
    """Run `edgectl`; everything is imported here so that importing the package costs nothing."""
    from edged.cli.root import edgectl

    edgectl(prog_name="edgectl")
