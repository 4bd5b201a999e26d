"""The governor's reasons in sentences: pure."""

from __future__ import annotations

from edged.governor.events import Cause

_SAID = {
    "entered": "reached",
    "predicted": "is foreseen to reach",
    "critical": "reached the critical",
    "left": "is below",
}
_ALONE = {
    "pinned": "pinned by the operator",
    "floor": "the floor that the operator set",
    "unavailable": "the rung before cannot be taken any more",
}


def because(cause: Cause) -> str:
    """The reading behind a change, in words.

    >>> because(Cause("entered", "temperature.cpu", 73.0, None, 72.0))
    'temperature.cpu reached 72 °C (73)'
    """
    if not cause.signal:
        return _ALONE.get(cause.why, cause.why)
    said = _SAID.get(cause.why, cause.why)
    unit = " °C" if cause.signal.startswith("temperature.") else ""
    figures = (("", cause.value), ("predicted ", cause.predicted))
    readings = ", ".join(f"{name}{value:.4g}" for name, value in figures if value is not None)
    limit = "" if cause.limit is None else f" {cause.limit:g}{unit}"
    return f"{cause.signal} {said}{limit}" + (f" ({readings})" if readings else "")
