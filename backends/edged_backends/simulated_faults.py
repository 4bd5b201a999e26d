"""Faults that a simulated session commits on request, for real: it crashes, hangs, lies."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edged.errors import BackendError, ConfigError, DeviceLost

EXIT_STATUS = 3
"""Status of a process that the fault `crash = "exit"` ended."""


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the fault file may say (TOML, or JSON when it is named `*.json`).

    The conditions `after_items`, `on_text` and `on_tokens` must all hold; `slow_factor` heeds none.
    Items are the rows of a batch for tensors, and new tokens for generators.
    """

    crash: Literal["", "segv", "abort", "exit"] = ""
    """End the process: by reading address 0, by `abort()`, or by `_exit(3)`."""
    hang: Literal["", "sleep", "spin", "native"] = ""
    """Never return: asleep, in a Python loop, or in C with the interpreter lock held."""
    raising: Literal["", "backend", "device_lost", "item"] = msgspec.field(name="raise", default="")
    """Raise from `run` or `step`; `item` ends only the sequences concerned, with an error event."""
    nan: bool = False
    """Fill floating-point outputs with NaN. Of no effect on generators."""
    garbage: bool = False
    """Answer with random bytes: any bit pattern for tensors, any byte token for generators."""
    slow_factor: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """Multiply every declared cost."""
    after_items: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Spare this many items of each session first."""
    on_text: str = ""
    """Only where the input contains this text: its bytes in a tensor, its tokens in a prompt."""
    on_tokens: tuple[int, ...] = ()
    """Only where integer input contains these ids in a row: for text that a real tokenizer has cut."""
    gone: tuple[str, ...] = ()
    """Ids of devices that are not there: `DeviceLost` at the next load, run or step, until they are back."""
    at_load: bool = False
    """Crash, hang or raise while the session is opened, and not later."""
    once: bool = False
    """Delete the fault file before it acts: the replacement of a crashed process is well."""


NONE = Faults()


class FaultFile:
    """A fault file that is read again whenever it changed. Replace it atomically; no file, no faults."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp: tuple[int, ...] = ()
        self._faults = NONE

    def current(self) -> Faults:
        """Return the faults in force; `ConfigError` when the file cannot be understood."""
        stamp = self._look()
        if stamp != self._stamp:
            self._faults = self._read() if stamp else NONE
            self._stamp = stamp
        return self._faults

    def remove(self) -> None:
        """Delete the file, so that what it asks for happens once."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _look(self) -> tuple[int, ...]:
        try:
            found = self._path.stat() if self._path is not None else None
        except FileNotFoundError:
            return ()
        return (found.st_mtime_ns, found.st_size, found.st_ino) if found is not None else ()

    def _read(self) -> Faults:
        path = self._path or Path()
        decode = msgspec.json.decode if path.suffix == ".json" else msgspec.toml.decode
        try:
            return decode(path.read_bytes(), type=Faults)
        except FileNotFoundError:
            return NONE
        except msgspec.MsgspecError as error:
            raise ConfigError(f"fault file {path}: {error}", param="faults") from error


class Saboteur:
    """Decides for one session whether the faults in force apply, and commits the fatal ones."""

    def __init__(self, file: FaultFile, device: str = "") -> None:
        self._file = file
        self._device = device
        self._items = 0

    def loading(self) -> None:
        """Commit what the file wants at load."""
        faults = self._present()
        if faults.at_load:
            self._commit(faults)

    def working(self, items: int, concerned: Callable[[Faults], bool]) -> Faults:
        """Commit what is due before `items` more items; return the milder faults to apply."""
        faults = self._present()
        self._items += items
        spared = faults is NONE or faults.at_load or not items or self._items <= faults.after_items
        if spared or not concerned(faults):
            return NONE
        self._commit(faults)
        return faults

    def _present(self) -> Faults:
        """The faults in force, on a device that is there."""
        faults = self._file.current()
        if self._device in faults.gone:
            raise DeviceLost(f"the device {self._device} is gone, as its fault file asks")
        return faults

    def slow_factor(self) -> float:
        """Return the factor on costs; it has no conditions."""
        return self._file.current().slow_factor

    def _commit(self, faults: Faults) -> None:
        if faults.once and (faults.crash or faults.hang or faults.raising):
            self._file.remove()
        if faults.hang:
            _HANGS[faults.hang]()
        if faults.crash:
            _CRASHES[faults.crash]()
        if faults.raising == "device_lost":
            raise DeviceLost("the simulated device is gone, as its fault file asks")
        if faults.raising == "backend":
            raise BackendError("the simulated runtime failed, as its fault file asks")


def contains(haystack: Sequence[int], needle: Sequence[int]) -> bool:
    """Whether ids occur in a row.

    >>> contains([5, 1, 2, 3], [1, 2]), contains([1, 5, 2], [1, 2])
    (True, False)
    """
    wanted = list(needle)
    starts = range(len(haystack) - len(wanted) + 1)
    return any(list(haystack[start : start + len(wanted)]) == wanted for start in starts)


def _sleep() -> None:
    while True:
        time.sleep(3600)


def _spin() -> None:
    while True:
        pass


def _native() -> None:
    """Wait in C for a signal; unlike `CDLL`, `PyDLL` keeps the interpreter lock."""
    while True:
        ctypes.PyDLL(None).pause()


_HANGS: dict[str, Callable[[], None]] = {"sleep": _sleep, "spin": _spin, "native": _native}
_CRASHES: dict[str, Callable[[], object]] = {
    "segv": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(EXIT_STATUS),
}
