"""Memory that holds nothing of some files: what they map is dropped, in this process or in another.

So a search finds its index on the disk every time, as where the library is far larger than the memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

MADV_PAGEOUT = 21
PROCESS_MADVISE = 440
"""The system call, the same number on every architecture of Linux."""
PAUSE_S = 0.15


class _Range(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def evict(pid: int, folder: Path) -> None:
    """Drop all files below a folder from memory, and from the page tables of a process.

    Raises `PermissionError` without CAP_SYS_NICE.
    """
    descriptor = os.pidfd_open(pid)
    try:
        for part in _mapped(pid, folder):
            _page_out(descriptor, part)
    finally:
        os.close(descriptor)
    for path in folder.rglob("*"):
        if path.is_file():
            _forget(path)


def _mapped(pid: int, folder: Path) -> Iterator[_Range]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if str(folder.resolve()) in line and not line.endswith("-shm"):
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            yield _Range(start, end - start)


def _page_out(descriptor: int, part: _Range) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(PROCESS_MADVISE, descriptor, ctypes.byref(part), 1, MADV_PAGEOUT, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"process_madvise: {os.strerror(number)}")


def _forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def forgetful(pids: list[int], folder: Path) -> Iterator[None]:
    """Drop the files again and again, as long as the block lasts."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(PAUSE_S):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):  # whoever asks it will notice
                    evict(pid, folder)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def major_faults(pid: int) -> int:
    """Pages that a process waited for so far: field 12 of proc_pid_stat(5)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])
