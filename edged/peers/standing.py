"""How a peer stands, for `edgectl status` and `edgectl peers list`."""

from __future__ import annotations

from typing import Literal

from edged.peers.book import Peer
from edged.peers.link import Link
from edged.report import PeerStatus


def peer_status(peer: Peer, link: Link | None, made_here: int, now: float) -> PeerStatus:
    """Put into words what the link knows; without one the peer only asks."""
    if link is None:
        return PeerStatus(
            name=peer.name,
            endpoint=peer.endpoint,
            state="guest",
            reason="",
            node="",
            rung="",
            hot=False,
            rtt_ms=0.0,
            free=0,
            grant=0,
            tokens_per_s=0.0,
            making=0,
            made_here=made_here,
            handed=0,
            returned=0,
            failures=0,
        )
    models = link.offers.models if link.offers else ()
    again_s = link.breaker.refusal_s(now) if link.breaker.state == "open" else 0.0
    return PeerStatus(
        name=peer.name,
        endpoint=peer.endpoint,
        state=_state(link),
        reason=link.reason,
        node=link.offers.node if link.offers else "",
        rung=link.offers.rung if link.offers else "",
        hot=any(offer.hot for offer in models),
        rtt_ms=link.rtt_s * 1000,
        free=sum(offer.free for offer in models),
        grant=max((offer.grant for offer in models), default=0),
        tokens_per_s=max((offer.tokens_per_s for offer in models), default=0.0),
        making=link.held,
        made_here=made_here,
        handed=link.handed,
        returned=link.returned,
        failures=link.failures,
        again_in_s=round(again_s, 2),
    )


def _state(link: Link) -> Literal["up", "connecting", "ejected"]:
    if link.up:
        return "up"
    return "ejected" if link.breaker.state == "open" else "connecting"
