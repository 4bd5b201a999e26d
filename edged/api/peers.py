"""Metric families about peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from edged.report import PeersStatus, PeerStatus

_GAUGES: dict[str, tuple[str, Callable[[PeerStatus], float]]] = {
    "up": ("1 while the peer answers.", lambda peer: peer.state == "up"),
    "hot": ("1 while the peer takes nothing because it is hot or sheds work.", lambda peer: peer.hot),
    "rtt_seconds": ("From a question to its answer.", lambda peer: peer.rtt_ms / 1000),
    "free": ("Answers that the peer would begin at once.", lambda peer: peer.free),
    "making": ("Answers that the peer makes for this node now.", lambda peer: peer.making),
    "made_here": ("Answers that this node makes for the peer now.", lambda peer: peer.made_here),
}
_COUNTERS: dict[str, tuple[str, Callable[[PeerStatus], float]]] = {
    "handed": ("Answers handed to the peer.", lambda peer: peer.handed),
    "returned": ("Answers that came back unfinished and went on at home.", lambda peer: peer.returned),
    "failures": ("How often the peer was given up for a while.", lambda peer: peer.failures),
}
_TOTALS: dict[str, tuple[str, Callable[[PeersStatus], float]]] = {
    "refused": ("Handshakes with keys that are not on the list.", lambda status: status.refused),
    "messages": ("Messages of peers that reached the application.", lambda status: status.messages),
    "malformed": ("Messages of peers that were none.", lambda status: status.malformed),
    "excessive": ("Messages beyond a peer's quota, dropped.", lambda status: status.excessive),
    "taken": ("Answers that this node began for peers.", lambda status: status.taken),
    "declined": ("Answers that this node refused peers or could not finish.", lambda status: status.declined),
}


def peer_families(status: PeersStatus) -> Iterator[Any]:
    """Yield how all peers stand, and what came in."""
    for name, (text, read) in _GAUGES.items():
        yield _filled(GaugeMetricFamily(f"edged_peer_{name}", text, labels=["peer"]), status, read)
    for name, (text, read) in _COUNTERS.items():
        yield _filled(CounterMetricFamily(f"edged_peer_{name}", text, labels=["peer"]), status, read)
    for name, (text, total) in _TOTALS.items():
        yield CounterMetricFamily(f"edged_peers_{name}", text, value=total(status))


def _filled(family: Any, status: PeersStatus, read: Callable[[PeerStatus], float]) -> Any:
    for peer in status.peers:
        family.add_metric([peer.name], float(read(peer)))
    return family
