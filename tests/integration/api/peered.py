"""How peers stand in the status of the scripted daemon."""

from __future__ import annotations

from edged.report import PeersStatus, PeerStatus

PEERS = PeersStatus(
    node="box-a",
    listen="tcp://192.0.2.1:7443",
    key="k" * 40,
    problem="",
    away=False,
    urgent=False,
    peers=(
        PeerStatus(
            name="box-b",
            endpoint="tcp://192.0.2.2:7443",
            state="up",
            reason="",
            node="box-b",
            rung="full",
            hot=False,
            rtt_ms=0.5,
            free=3,
            grant=4,
            tokens_per_s=50.0,
            making=1,
            made_here=0,
            handed=7,
            returned=2,
            failures=1,
        ),
    ),
    refused=5,
    messages=100,
    malformed=0,
    excessive=0,
    taken=3,
    declined=0,
)
