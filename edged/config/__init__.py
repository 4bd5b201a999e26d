"""`edged.toml` as frozen values, and the only reader of files and environment.

Precedence: built-in < file < environment < flags. A file is sparse: an empty one works.
"""

from edged.config.loader import load, schema
from edged.config.places import find_socket, locate
from edged.config.tables import (
    BUILT_IN,
    Api,
    Config,
    Daemon,
    Governor,
    Library,
    Name,
    Pipeline,
    Placement,
    Queue,
    Stage,
    Table,
)

__all__ = [
    "BUILT_IN",
    "Api",
    "Config",
    "Daemon",
    "Governor",
    "Library",
    "Name",
    "Pipeline",
    "Placement",
    "Queue",
    "Stage",
    "Table",
    "find_socket",
    "load",
    "locate",
    "schema",
]
