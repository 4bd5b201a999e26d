from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged import log

logger = logging.getLogger("edged.test")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture(autouse=True)
def root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    yield
    for handler in root.handlers:
        if isinstance(handler, log.Sink):
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def written(reader: int) -> list[str]:
    """Close the sink, which writes what is queued, and read it."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, log.Sink):
            handler.close()
    os.set_blocking(reader, False)
    return os.read(reader, 1 << 20).decode().splitlines()


def test_a_json_line_holds_the_event_and_its_fields(pipe):
    log.configure("info", "json", {}, pipe[1])
    logger.info("swapped", extra={"stage": "generator", "celsius": 61.5})
    line = json.loads(written(pipe[0])[0])
    assert line["event"] == "swapped"
    assert (line["level"], line["logger"]) == ("info", "edged.test")
    assert (line["stage"], line["celsius"]) == ("generator", 61.5)
    assert isinstance(line["ts"], float)


def test_an_exception_is_one_json_line(pipe):
    log.configure("info", "json", {}, pipe[1])
    try:
        raise ValueError("what\nhappened")  # noqa: TRY301 - it is what the test logs
    except ValueError:
        logger.exception("failed")
    [line] = written(pipe[0])
    assert "ValueError: what\nhappened" in json.loads(line)["error"]


def test_text_lines_are_for_people_and_cannot_be_forged(pipe):
    log.configure("info", "text", {}, pipe[1])
    logger.warning("bad\nREADY", extra={"name_of": "a b\n"})
    [line] = written(pipe[0])
    assert line.endswith("warning edged.test  bad\\x0aREADY  name_of='a b\\n'")


@pytest.mark.parametrize(
    ("format_", "environment", "as_json"),
    [
        ("auto", {}, False),
        ("auto", {"INVOCATION_ID": "1"}, True),
        ("auto", {"JOURNAL_STREAM": "1:2"}, True),
        ("text", {"INVOCATION_ID": "1"}, False),
        ("json", {}, True),
    ],
)
def test_the_format_follows_systemd_unless_told(pipe, format_, environment, as_json):
    log.configure("info", format_, environment, pipe[1])
    logger.info("hello")
    assert written(pipe[0])[0].startswith("{") is as_json


def test_the_journal_gets_priorities_and_nobody_else(pipe):
    status = os.fstat(pipe[1])
    log.configure("debug", "auto", {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}, pipe[1])
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(level, "hello")
    assert [line[:3] for line in written(pipe[0])] == ["<7>", "<6>", "<4>", "<3>", "<2>"]


def test_the_level_counts(pipe):
    log.configure("warning", "text", {}, pipe[1])
    logger.info("quiet")
    logger.warning("loud")
    assert [line.split()[-1] for line in written(pipe[0])] == ["loud"]


def test_configuring_again_replaces(pipe):
    log.configure("info", "text", {}, pipe[1])
    log.configure("info", "json", {}, pipe[1])
    logger.info("once")
    assert len(written(pipe[0])) == 1


def test_the_newest_records_can_be_asked_for(pipe):
    log.configure("info", "json", {}, pipe[1])
    for number in range(5):
        logger.info("event", extra={"number": number})
    newest = log.recent(2)
    assert [(record["number"], record["seq"]) for record in newest] == [(3, 4), (4, 5)]
    assert log.recent(0) == []


def test_a_reader_that_stalls_costs_lines_and_not_the_caller(pipe, monkeypatch):
    monkeypatch.setattr(log, "LINES_PER_S", 1e9)
    monkeypatch.setattr(log, "QUEUED_LINES", 10)
    monkeypatch.setattr(log, "FLUSH_S", 0.01)
    log.configure("info", "json", {}, pipe[1])
    for _ in range(2000):  # far more than pipe and queue hold: a blocking handler would never return
        logger.info("event", extra={"padding": "x" * 1000})
    [sink] = [handler for handler in logging.getLogger().handlers if isinstance(handler, log.Sink)]
    assert any(record["event"] == "log_lines_dropped" for record in log.recent(1000))
    assert len(sink.records) == log.RING_RECORDS
    thread = sink._writer._thread
    sink.close()
    os.set_blocking(pipe[0], False)
    while thread.is_alive():
        drain(pipe[0])
        thread.join(0.01)


def drain(reader: int) -> None:
    try:
        while os.read(reader, 1 << 16):
            pass
    except BlockingIOError:
        return


def test_a_flood_is_cut_and_counted(pipe, monkeypatch):
    now_s = 1000.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now_s)
    log.configure("info", "json", {}, pipe[1])
    for _ in range(log.LINES_PER_S + 50):
        logger.error("too many open files")
    now_s += 1
    logger.info("calm again")
    lines = [json.loads(line) for line in written(pipe[0])]
    assert len(lines) == log.LINES_PER_S + 2
    assert (lines[-2]["event"], lines[-2]["count"]) == ("log_lines_dropped", 50)
    assert lines[-1]["event"] == "calm again"


def test_a_closed_reader_is_survived():
    reader, writer = os.pipe()
    os.close(reader)
    log.configure("info", "json", {}, writer)
    logger.info("into the void")
    for handler in logging.getLogger().handlers:
        if isinstance(handler, log.Sink):
            handler.close()
    os.close(writer)
    assert log.recent(1)[0]["event"] == "into the void"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()) | st.integers(), inner),
    max_leaves=10,
)


@given(values, st.text(st.characters()))
def test_whatever_is_logged_becomes_one_line_of_valid_json(value: Any, event: str):
    record = logging.makeLogRecord(
        {"name": "edged", "levelname": "INFO", "msg": event, "args": (), "field": value}
    )
    line = log.as_json_line(log.describe(record))
    assert "\n" not in line
    assert "field" in json.loads(line)
    log.as_text_line(log.describe(record)).encode()


def test_a_field_cannot_pose_as_the_records_own():
    record = logging.makeLogRecord(
        {"name": "edged", "levelname": "INFO", "msg": "real", "event": "forged", "ts": 0}
    )
    assert log.describe(record)["event"] == "real"
