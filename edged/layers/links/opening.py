"""A stage's two hops, by transport."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from edged.layers.links.hops import Incoming, Outgoing
from edged.layers.runners import device_of
from edged.layers.spec import StageSpec


class Links(NamedTuple):
    """How a stage reaches its neighbours, and how it lets go of them."""

    incoming: Incoming
    outgoing: Outgoing
    leave: Callable[[], None]

    def close(self) -> None:
        """Deliver what is posted, and close."""
        self.outgoing.close()
        self.incoming.close()
        self.leave()


def process_links(
    spec: StageSpec, watched: Sequence[int] = (), look: Callable[[], None] = lambda: None
) -> Links:
    """Open the hops of a stage that has a process of its own; `watched` and `look` are the crew's."""
    if spec.transport == "zeromq":
        from edged.layers.links.zeromq import ZeromqIncoming, ZeromqOutgoing

        incoming = ZeromqIncoming(_address(spec, spec.stage), f"stage {spec.previous}", watched, look)
        return Links(incoming, ZeromqOutgoing(_address(spec, spec.next), f"stage {spec.next}"), _nothing)
    from edged.layers.links.distributed import DistributedIncoming, DistributedOutgoing, join, leave

    device, nccl = device_of(spec.device), spec.transport == "nccl"
    join(spec.stage, spec.stages, spec.meeting, nccl=nccl, device=device)
    return Links(
        DistributedIncoming(spec.previous, device, nccl=nccl),
        DistributedOutgoing(
            spec.next, device, nccl=nccl, window=spec.sequences + 2, timeout_s=spec.timeout_s
        ),
        leave,
    )


def _address(spec: StageSpec, stage: int) -> str:
    return f"ipc://{spec.meeting}/{stage}"


def _nothing() -> None:
    """ZeroMQ's hops close one by one."""
