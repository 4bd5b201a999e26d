"""The layers of the configuration: how each is read, checked and merged."""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

import msgspec

from edged.errors import ConfigError

PREFIX = "EDGED_"
MAX_FILE_BYTES = 1 << 20
WORLD_WRITABLE, GROUP_WRITABLE = stat.S_IWOTH, stat.S_IWGRP

Layer = dict[str, Any]
Keys = tuple[str, ...]


def merge(*layers: Mapping[str, Any]) -> Layer:
    """Lay each layer over the ones before it; tables are merged, everything else is replaced.

    >>> merge({"queue": {"slots": 1, "slot_bytes": 4096}}, {"queue": {"slots": 2}})
    {'queue': {'slots': 2, 'slot_bytes': 4096}}
    """
    merged: Layer = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            if isinstance(value, Mapping):
                merged[key] = merge(below, value) if isinstance(below, dict) else merge(value)
            else:
                merged[key] = value
    return merged


def from_file(path: Path) -> Layer:
    """Read one TOML file that nobody but its owner (root or ourselves) can write."""
    try:
        with path.open("rb") as file:
            _refuse_foreign(path, os.fstat(file.fileno()))
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes; is it the right file?")
    anchored: Layer = _anchored(_parsed(path, data), path.absolute().parent)
    return anchored


def _parsed(path: Path, data: bytes) -> Layer:
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not valid UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _refuse_foreign(path: Path, status: os.stat_result) -> None:
    ours = status.st_uid == os.geteuid()
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path} is not a regular file")
    if not ours and status.st_uid != 0:
        raise ConfigError(f"{path} belongs to uid {status.st_uid}; it has to belong to root or to you")
    if status.st_mode & (WORLD_WRITABLE if ours else WORLD_WRITABLE | GROUP_WRITABLE):
        raise ConfigError(f"{path} can be written by other users; run: chmod go-w {path}")


def _anchored(value: Any, folder: Path, keys: Keys = ()) -> Any:
    """Make the relative paths of a file relative to the file's folder."""
    if isinstance(value, dict):
        return {key: _anchored(inner, folder, (*keys, key)) for key, inner in value.items()}
    if keys in PATHS and isinstance(value, str) and value:
        return str(folder / value) if not value.startswith("~") else value
    return value


PATHS: frozenset[Keys] = frozenset(
    {
        ("daemon", "state_dir"),
        ("daemon", "runtime_dir"),
        ("api", "socket"),
        ("api", "admin_socket"),
        ("library", "dir"),
    }
)
"""The options that hold a path."""


def from_environment(environment: Mapping[str, str], kind: type[msgspec.Struct]) -> Layer:
    """Read `EDGED_QUEUE__SLOTS=8` as `queue.slots`; two underscores part the names."""
    layer: Layer = {}
    for name, text in sorted(environment.items()):
        if name.startswith(PREFIX):
            keys = tuple(name.removeprefix(PREFIX).lower().split("__"))
            if len(keys) > 1:
                layer = merge(layer, _nested(keys, _typed(kind, keys, text)))
            else:
                _refuse_near_miss(name, kind)
    return layer


def _refuse_near_miss(name: str, kind: type[msgspec.Struct]) -> None:
    """Catch `EDGED_QUEUE_SLOTS`: one underscore where two are meant would be ignored in silence."""
    for table, inner in _fields(kind).items():
        for option in _fields(inner) if _is_struct(inner) else ():
            if name == f"{PREFIX}{table}_{option}".upper():
                meant = f"{PREFIX}{table}__{option}".upper()
                raise ConfigError(
                    f"environment variable {name} is not an option; did you mean {meant}?", param=name
                )


def from_flags(overrides: Sequence[str], kind: type[msgspec.Struct]) -> Layer:
    """Read `queue.slots=8` as `--set` takes it; keys may be quoted as in TOML."""
    layer: Layer = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: expected NAME=VALUE, such as queue.slots=8", param=name)
        keys = _dotted_keys(name)
        layer = merge(layer, _nested(keys, _typed(kind, keys, text.strip())))
    return layer


def _dotted_keys(name: str) -> Keys:
    try:
        table: Any = tomllib.loads(f"{name} = 0")
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--set {name}: not the name of an option", param=name) from error
    keys: list[str] = []
    while isinstance(table, dict):
        key, table = next(iter(table.items()))
        keys.append(key)
    return tuple(keys)


def _nested(keys: Keys, value: Any) -> Layer:
    for key in reversed(keys):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def _typed(kind: type[msgspec.Struct], keys: Keys, text: str) -> Any:
    """Read text as the option's type says: TOML where that fits, else the text itself."""
    wanted = _type_of(kind, keys)
    candidates = [*_as_toml(text), text]
    for candidate in candidates:
        try:
            msgspec.convert(candidate, wanted, dec_hook=_path)
        except msgspec.ValidationError:
            continue
        return candidate
    return candidates[0]


def _as_toml(text: str) -> list[Any]:
    try:
        return [tomllib.loads(f"value = {text}")["value"]]
    except tomllib.TOMLDecodeError:
        return []


def _type_of(kind: Any, keys: Keys) -> Any:
    for key in keys:
        if _is_struct(kind):
            kind = _fields(kind).get(key, Any)
        else:
            kind = get_args(kind)[1] if get_origin(kind) is dict else Any
    return kind


def check(kind: Any, value: Any, source: str, keys: Keys = ()) -> None:
    """Check one layer by itself: every key known, every value of its type and within its limits."""
    if _is_struct(kind):
        fields = _fields(kind)
        for key, inner in _table(value, source, keys):
            if key not in fields:
                _unknown(key, list(fields), source, keys)
            check(fields[key], inner, source, (*keys, key))
    elif get_origin(kind) is dict and _is_struct(get_args(kind)[1]):
        for key, inner in _table(value, source, keys):
            _convertible(key, get_args(kind)[0], source, (*keys, key))
            check(get_args(kind)[1], inner, source, (*keys, key))
    else:
        _convertible(value, kind, source, keys)


def require(kind: Any, value: Any, keys: Keys = ()) -> None:
    """Check that the merged layers give every option that has no default; types are right already."""
    if _is_struct(kind):
        for field in msgspec.structs.fields(kind):
            if field.required and field.name not in value:
                name = dotted((*keys, field.name))
                raise ConfigError(f"{name} is missing; it has no default", param=name)
            if field.name in value:
                require(field.type, value[field.name], (*keys, field.name))
    elif get_origin(kind) is dict and isinstance(value, dict):
        for key, inner in value.items():
            require(get_args(kind)[1], inner, (*keys, key))


def _table(value: Any, source: str, keys: Keys) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{source}: {dotted(keys)} = {value!r}: expected a table", param=dotted(keys))
    return value.items()


def _convertible(value: Any, kind: Any, source: str, keys: Keys) -> None:
    name = dotted(keys)
    try:
        path = msgspec.convert(value, kind, dec_hook=_path)
    except msgspec.ValidationError as error:
        reason = str(error).replace("`", "")
        choices = f"; choose from {', '.join(map(str, get_args(kind)))}" if "enum" in reason else ""
        raise ConfigError(f"{source}: {name} = {value!r}: {reason.lower()}{choices}", param=name) from error
    if isinstance(path, Path) and str(path).startswith("~"):
        raise ConfigError(
            f"{source}: {name} = {value!r}: write the whole path, ~ is not expanded", param=name
        )


def _unknown(key: str, known: list[str], source: str, keys: Keys) -> NoReturn:
    name = dotted((*keys, key))
    near = difflib.get_close_matches(key, known, n=1)
    remedy = f"did you mean {dotted((*keys, near[0]))}?" if near else f"known here: {', '.join(known)}"
    raise ConfigError(f"{source}: unknown option {name}; {remedy}", param=name)


def dotted(keys: Keys) -> str:
    """Write a path of keys as TOML does.

    >>> dotted(("stages", "v1.5", "model"))
    'stages."v1.5".model'
    """
    return ".".join(key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"' for key in keys)


def _path(kind: type, value: Any) -> Path:
    if kind is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    raise ValueError(f"expected a path as a str, got {type(value).__name__}")


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _fields(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(kind)}
