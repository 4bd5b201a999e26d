"""`python -m edged.cli`: `edgectl` where the script is not on the path."""

from edged.cli import main

main()
