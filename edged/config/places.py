"""Where things lie: the file, the sockets, the state; one answer for daemon and client."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edged.errors import ConfigError

if TYPE_CHECKING:
    from edged.config.tables import Config

SYSTEM_FILE = Path("/etc/edged/edged.toml")
SYSTEM_RUNTIME = Path("/run/edged")
SYSTEM_STATE = Path("/var/lib/edged")
MAX_SOCKET_PATH_BYTES = 107
"""`sun_path` of `struct sockaddr_un` is 108 bytes, one of which ends the string (unix(7))."""


def locate(path: Path | None, environment: Mapping[str, str]) -> Path | None:
    """Return the file to read: `--config`, $EDGED_CONFIG, the system's, the user's, or None.

    A file that is asked for is returned even when it is missing, so that reading it fails aloud.
    """
    if path is not None:
        return path.absolute()
    if named := environment.get("EDGED_CONFIG"):
        return Path(named).absolute()
    user = _user_folder("XDG_CONFIG_HOME", "user_config_path", environment) / "edged.toml"
    return next((file for file in (SYSTEM_FILE, user) if file.exists()), None)


def resolve(config: Config, environment: Mapping[str, str], file: Path | None) -> Config:
    """Fill in the folders that were left empty and make every path absolute."""
    system = file == SYSTEM_FILE
    runtime = _absolute(config.daemon.runtime_dir) or _runtime_folder(environment, system=system)
    state = _absolute(config.daemon.state_dir) or _state_folder(environment, system=system)
    replace = msgspec.structs.replace
    return replace(
        config,
        daemon=replace(config.daemon, runtime_dir=runtime, state_dir=state),
        api=replace(
            config.api,
            socket=_socket("api.socket", _absolute(config.api.socket) or runtime / "edged.sock"),
            admin_socket=_socket(
                "api.admin_socket", _absolute(config.api.admin_socket) or runtime / "admin.sock"
            ),
        ),
        library=replace(config.library, dir=_absolute(config.library.dir) or state / "library"),
    )


def _absolute(path: Path) -> Path | None:
    return path.absolute() if path != Path() else None


def _socket(name: str, path: Path) -> Path:
    """Refuse a path that the kernel would refuse later, in words that say why."""
    length = len(bytes(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"{name} = '{path}': {length} bytes, but the path of a Unix socket has at most "
            f"{MAX_SOCKET_PATH_BYTES}; set {name} or daemon.runtime_dir to a shorter path",
            param=name,
        )
    return path


def _runtime_folder(environment: Mapping[str, str], *, system: bool) -> Path:
    """Never below /tmp, where other users could be first: the state folder is the last resort."""
    if given := environment.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])
    if system:
        return SYSTEM_RUNTIME
    if given := environment.get("XDG_RUNTIME_DIR"):
        return Path(given) / "edged"
    login = Path(f"/run/user/{os.getuid()}")
    return login / "edged" if login.is_dir() else _state_folder(environment, system=False) / "run"


def _state_folder(environment: Mapping[str, str], *, system: bool) -> Path:
    if given := environment.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    return SYSTEM_STATE if system else _user_folder("XDG_STATE_HOME", "user_state_path", environment)


def _user_folder(variable: str, function: str, environment: Mapping[str, str]) -> Path:
    if given := environment.get(variable):
        return Path(given) / "edged"
    import platformdirs

    found: Path = getattr(platformdirs, function)("edged", appauthor=False)
    return found


def find_socket(config: Config, environment: Mapping[str, str], *, admin: bool = False) -> Path:
    """Return the socket that a client should try: the configured one, else the system daemon's.

    The second is what an operator means who types `edgectl status` beside a daemon that systemd
    started without a configuration file.
    """
    configured = config.api.admin_socket if admin else config.api.socket
    default = _runtime_folder(environment, system=False) / configured.name
    system = SYSTEM_RUNTIME / configured.name
    if configured == default and not _there(configured) and _there(system):
        return system
    return configured


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # A folder that we may not enter holds a daemon that we may not talk to: let connecting say so.
        return True
