"""A running layer pipeline: stages as threads or processes, the first one here."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from msgspec.structs import replace

from edged.backend import TokenEvent
from edged.errors import BackendError, EdgedError
from edged.layers.crew import Crew
from edged.layers.faults import Explained
from edged.layers.follower import follow
from edged.layers.head import Head, HeadShape
from edged.layers.links.hops import Channel
from edged.layers.links.meeting import Meeting
from edged.layers.links.opening import Links, process_links
from edged.layers.meter import Meter
from edged.layers.runners import build
from edged.layers.schedule import check
from edged.layers.spec import Loaded, StageSpec
from edged.layers.stage import Runner
from edged.layers.wire import Broken

LOAD_S = 1800.0
"""How long all stages may take to load: the weights of a large model come from a slow disk."""


class Pipeline:
    """The head, and what must be closed with it. Made by `start`."""

    def __init__(
        self, head: Head, runner: Runner, links: Links, crew: Crew, loaded: Sequence[Loaded]
    ) -> None:
        self.head = head
        self.loaded = tuple(loaded)
        self._runner = runner
        self._links = links
        self._crew = crew
        self._broken = False
        self._closed = False

    @property
    def pids(self) -> dict[int, int]:
        """Process ids of the stages that have a process of their own."""
        return self._crew.pids

    def turn(self) -> list[TokenEvent] | None:
        """See `Head.turn`; a dead stage is named, and the others are ended at once."""
        meter = self.head.meter
        meter.turn(time.monotonic(), self.head.busy_lanes)
        self._broken = True  # until the turn has ended well, whatever ends it
        try:
            told = self.head.turn()
        except BackendError as error:
            blamed = self._crew.blamed(error)
            self._end()
            raise blamed from error
        self._broken = False
        meter.turned(time.monotonic())
        return told

    def look(self) -> None:
        """Raise `BackendError` that names a stage which died although nothing was on its way."""
        try:
            self._crew.check()
        except BackendError:
            self._end()
            raise

    def _end(self) -> None:
        self._broken = True
        self._crew.kill()

    def close(self) -> None:
        """End all stages; idempotent."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as last:
            last.callback(self._runner.close)
            last.callback(self._links.close)
            last.callback(self._crew.close)
            self._dismiss()

    def _dismiss(self) -> None:
        """Tell the stages that no more jobs come, unless that would make somebody wait."""
        if not self._broken:
            try:
                self.head.finish()
            except BackendError:  # one of them died while there was nothing to do
                self._broken = True
        if self._broken:
            self._crew.kill()


def start(
    specs: Sequence[StageSpec], shape: HeadShape, ends: Callable[[int], bool], meter: Meter | None = None
) -> Pipeline:
    """Start a pipeline of at least one stage; `specs` need no `meeting` and no `parent`.

    Raises `ConfigError` for what cannot work, `BackendError` that names the stage which did not load.
    """
    check(shape.mode, shape.stages, shape.micro_batches)
    meter = meter or Meter(shape.stages)
    if specs[0].transport == "threads" or len(specs) == 1:
        return _in_threads(specs, shape, ends, meter)
    return _in_processes(specs, shape, ends, meter)


def _in_processes(
    specs: Sequence[StageSpec], shape: HeadShape, ends: Callable[[int], bool], meter: Meter
) -> Pipeline:
    with ExitStack() as undo:
        meeting = Meeting()
        undo.callback(meeting.close)
        own, *others = [replace(spec, meeting=meeting.folder, parent=os.getpid()) for spec in specs]
        crew = Crew(others)
        undo.callback(crew.close)
        undo.callback(crew.kill)
        runner, first = build(own)
        undo.callback(runner.close)
        loaded = [first, *crew.loaded(LOAD_S)]
        links = _met(own, crew)
        undo.pop_all()
    links = Links(links.incoming, links.outgoing, _both(links.leave, meeting.close))
    return Pipeline(Head(Explained(runner, 0), links, shape, ends, meter), runner, links, crew, loaded)


def _met(own: StageSpec, crew: Crew) -> Links:
    try:
        return process_links(own, crew.outputs, crew.check)
    except BackendError as error:
        raise crew.blamed(error) from error


def _both(one: Callable[[], None], other: Callable[[], None]) -> Callable[[], None]:
    def all_of_it() -> None:
        one()
        other()

    return all_of_it


def _in_threads(
    specs: Sequence[StageSpec], shape: HeadShape, ends: Callable[[int], bool], meter: Meter
) -> Pipeline:
    timeout_s = specs[0].timeout_s
    channels = [Channel(f"the link into stage {spec.stage}", timeout_s) for spec in specs]
    built = [build(spec, own_process=len(specs) == 1) for spec in specs]
    threads = []
    for spec, (runner, _) in zip(specs[1:], built[1:], strict=True):
        hops = channels[spec.stage], channels[spec.next]
        arguments = (spec, Explained(runner, spec.stage), *hops)
        threads.append(threading.Thread(target=_followed, args=arguments, daemon=True))
        threads[-1].start()

    def leave() -> None:
        for channel in channels:
            channel.close()
        for thread in threads:
            thread.join(timeout_s)
        for runner, _ in built[1:]:
            runner.close()

    links = Links(channels[0], channels[specs[0].next], leave)
    head = Head(Explained(built[0][0], 0), links, shape, ends, meter)
    return Pipeline(head, built[0][0], links, Crew(()), [loaded for _, loaded in built])


def _followed(spec: StageSpec, runner: Runner, incoming: Channel, outgoing: Channel) -> None:
    """A stage in a thread: what ends it goes round, named."""
    try:
        follow(spec, runner, incoming, outgoing)
    except EdgedError as error:
        outgoing.send(Broken(spec.stage, "backend", error.message))
