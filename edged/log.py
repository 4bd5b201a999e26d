"""Logs are events with fields: JSON lines under systemd, readable lines elsewhere.

Writing a log never blocks the caller: a stalled reader of standard error costs lines, which are
counted, and not the daemon. A flood is cut at `LINES_PER_S`.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from logging.handlers import QueueHandler
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, Literal

import msgspec

LINES_PER_S = 100
RING_RECORDS = 1000
QUEUED_LINES = 2000
FLUSH_S = 1.0

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Levels of syslog, which journald reads from `<N>` in front of a line."""
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
_MAX_INT = 2**63

Format = Literal["auto", "text", "json"]
Line = dict[str, Any]


def configure(
    level: str = "info",
    format: Format = "auto",  # noqa: A002 - the option's name
    environment: Mapping[str, str] = os.environ,
    fd: int = 2,
) -> None:
    """Send every logger's records to `fd`; calling it again replaces what was configured before."""
    root = logging.getLogger()
    for handler in [*root.handlers]:
        root.removeHandler(handler)
        if isinstance(handler, Sink):
            handler.close()
    under_systemd = "INVOCATION_ID" in environment or "JOURNAL_STREAM" in environment
    as_json = format == "json" or (format == "auto" and under_systemd)
    root.addHandler(Sink(fd, as_json=as_json, priorities=_is_journal(fd, environment)))
    root.setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    logging.getLogger("edged").setLevel(level.upper())
    logging.captureWarnings(capture=True)


def recent(count: int) -> list[Line]:
    """Return the newest records, oldest first, each with an ascending number `seq`."""
    sinks = [handler for handler in logging.getLogger().handlers if isinstance(handler, Sink)]
    return list(sinks[0].records)[-count:] if sinks and count > 0 else []


def _is_journal(fd: int, environment: Mapping[str, str]) -> bool:
    """Whether `fd` is the journal's own stream: systemd.exec(5), JOURNAL_STREAM."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"


class Limiter:
    """A token bucket: `rate` lines a second, as many at once."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._tokens = rate
        self._then_s = 0.0

    def allow(self, now_s: float) -> bool:
        """Whether one more line may pass now."""
        self._tokens = min(self._rate, self._tokens + max(now_s - self._then_s, 0) * self._rate)
        self._then_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Sink(QueueHandler):
    """Keeps the newest records in memory and hands lines to a thread that writes them.

    A record that cannot be described is reported as `logging` reports it, and does not break its caller.
    """

    def __init__(self, fd: int, *, as_json: bool, priorities: bool) -> None:
        self._writer = Writer(fd)
        super().__init__(self._writer.lines)
        self.records: deque[Line] = deque(maxlen=RING_RECORDS)
        self._render = as_json_line if as_json else as_text_line
        self._priorities = priorities
        self._limiter = Limiter(LINES_PER_S)
        self._seq = 0
        self._lost = 0
        atexit.register(self.close)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep and queue one record; never waits, never raises."""
        if self._limiter.allow(time.monotonic()):
            super().emit(record)
        else:
            self._lost += 1

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Nothing: `enqueue` describes the record, and nobody pickles it."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Describe a record at once, since its arguments may change; keep it, and queue its line."""
        self._put(record.levelno, describe(record))

    def _put(self, level: int, line: Line) -> None:
        if self._lost:
            lost, self._lost = self._lost, 0
            self._put(logging.WARNING, _own("log_lines_dropped", count=lost))
        self._seq += 1
        line["seq"] = self._seq
        self.records.append(line)
        prefix = f"<{_priority(level)}>" if self._priorities else ""
        if not self._writer.put(f"{prefix}{self._render(line)}\n".encode()):
            self._lost += 1

    def close(self) -> None:
        """Write what is queued, within `FLUSH_S` seconds."""
        atexit.unregister(self.close)
        self._writer.close()
        super().close()


class Writer:
    """A bounded queue of lines and the thread that writes them; started with the first line."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.lines: Queue[bytes] = Queue(QUEUED_LINES)
        self._closing = Event()
        self._thread: Thread | None = None

    def put(self, line: bytes) -> bool:
        """Queue a line; False when the reader is too far behind."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="log", daemon=True)
            self._thread.start()
        try:
            self.lines.put_nowait(line)
        except Full:
            return False
        return True

    def close(self) -> None:
        """Give the thread a moment to write what is left."""
        self._closing.set()
        if self._thread is not None:
            with suppress(Full):
                self.lines.put_nowait(b"")
            self._thread.join(FLUSH_S)
            self._thread = None

    def _run(self) -> None:
        while not (self._closing.is_set() and self.lines.empty()):
            with suppress(Empty, OSError):
                _write_all(self._fd, self.lines.get(timeout=None if not self._closing.is_set() else 0))


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _priority(level: int) -> int:
    return next((number for limit, number in sorted(_PRIORITIES.items(), reverse=True) if level >= limit), 7)


def _own(event: str, **fields: Any) -> Line:
    return {"ts": round(time.time(), 3), "level": "warning", "logger": "edged.log", "event": event, **fields}


def describe(record: logging.LogRecord) -> Line:
    """Turn a record, and whatever `extra=` carried, into plain data."""
    line: Line = {
        "ts": round(record.created, 3),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": _plain(record.getMessage()),
    }
    line |= {key: _plain(value) for key, value in vars(record).items() if key not in _STANDARD | line.keys()}
    if record.exc_info and record.exc_info[0]:
        line["error"] = _plain(logging.Formatter().formatException(record.exc_info))
    return line


def _plain(value: Any) -> Any:
    """Make a value safe for every encoder: no foreign types, no lone surrogates, no huge numbers."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < _MAX_INT):
        return value
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return _plain(str(value))


def as_json_line(line: Line) -> str:
    """Write one record for machines."""
    return msgspec.json.encode(line).decode()


def as_text_line(line: Line) -> str:
    """Write one record for people; only a traceback takes more than one line.

    >>> as_text_line({"ts": 0.5, "level": "info", "logger": "edged", "event": "ready", "stages": 3})[-30:]
    'info    edged  ready  stages=3'
    """
    clock = time.strftime("%H:%M:%S", time.localtime(line["ts"])) + f".{round(line['ts'] % 1 * 1000):03d}"
    fields = [
        f"{key}={_quoted(value)}"
        for key, value in line.items()
        if key not in {"ts", "level", "logger", "event", "error", "seq"}
    ]
    event = str(line["event"]).translate(_CONTROL)
    text = f"{clock} {line['level']:<7} {line['logger']}  {'  '.join([event, *fields])}"
    return f"{text}\n{line['error']}" if "error" in line else text


def _quoted(value: Any) -> str:
    text = str(value)
    return repr(text) if " " in text or not text.isprintable() else text
