"""The table of `edgectl ladder show`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from edged.cli.output import print_json, print_table, readable_seconds, visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edged.config import Config
    from edged.config.tables import Rung
    from edged.governor.effects import Effect
    from edged.rungs.figures import Figures
    from edged.rungs.known import Known, Order
    from edged.rungs.scores import Mean

HEADINGS = ("RUNG", "COST", "QUALITY", "BY", "NDCG@10", "AGREES", "SUPPORTED", "ANSWER", "FIRST", "PER S",
            "CPU", "ENERGY", "WHAT IT DOES")  # fmt: skip
NONE = "-"


def print_ladder(config: Config, environment: Mapping[str, str], *, as_json: bool) -> None:
    """Print what is known of the configured ladder, and what is wrong with its order."""
    from edged.rungs.known import known, known_effects, order_of

    found = known(config, environment)
    effects, order = known_effects(config, found), order_of(config, found)
    if as_json:
        print_json(_document(config, found, effects, order))
        return
    ladder = config.governor.ladder
    print_table(HEADINGS, [_row(*each) for each in zip(ladder, effects, found.figures, strict=True)])
    for line in (*_notes(found), *_judged(order)):
        click.echo(visible(line), err=True)


def source(rung: Rung, effect: Effect) -> str:
    """Where a rung's cost and quality are from."""
    if rung.cost is not None and rung.quality is not None:
        return "configured"
    if effect.estimated:
        return "estimated" if len(effect.estimated) > 1 else f"{', '.join(effect.estimated)} estimated"
    return "measured" if rung.cost is None and rung.quality is None else "configured, measured"


def _row(rung: Rung, effect: Effect, known: Figures) -> tuple[str, ...]:
    from edged.rungs.words import does

    what = does(rung) + (f" (cannot be taken: {known.unavailable})" if known.unavailable else "")
    return (
        rung.name,
        f"{effect.cost:.2f}",
        f"{effect.quality:.3f}",
        source(rung, effect),
        _mean(known.ndcg),
        _mean(known.agreement),
        _share(known.supported),
        _seconds(known.latency_s),
        _seconds(known.first_s),
        NONE if known.throughput_per_s is None else f"{known.throughput_per_s:.2f}",
        _seconds(known.cpu_s),
        NONE if known.joules is None else f"{known.joules:.1f} J",
        what,
    )


def _mean(found: Mean | None) -> str:
    """With its margin, of which one question tells nothing."""
    if found is None:
        return NONE
    return (
        f"{found.value:.3f} ±{found.margin:.3f}"
        if math.isfinite(found.margin)
        else f"{found.value:.3f} {NONE}"
    )


def _share(found: Mean | None) -> str:
    return NONE if found is None else f"{found.value:.0%}"


def _seconds(found: float | None) -> str:
    return NONE if found is None else readable_seconds(found)


def _notes(found: Known) -> list[str]:
    """What has to be known to read the table."""
    if found.record is None:
        return ["note: nothing was measured here yet; run: edgectl ladder measure"]
    notes = [f"note: stale, so estimates count: {reason}" for reason in found.stale]
    measured = [each for each in found.figures if each.throughput_per_s is not None]
    if measured and all(each.joules is None for each in measured):
        notes.append("note: energy is not measurable here: no powercap counter can be read")
    if lacking := [each.name for each in found.figures if each.cost is None and not each.unavailable]:
        notes.append(f"note: not measured yet: {', '.join(lacking)}; `edgectl ladder measure` goes on")
    if found.record.origin != "file":
        made = f"{found.record.by_words} of words, the others by the generator"
        notes.append(f"note: by {len(found.record.questions)} questions made of the documents ({made})")
    return notes


def _judged(order: Order) -> list[str]:
    found = [f"order: {problem}" for problem in order.problems]
    if order.unsure:
        names = ", ".join(order.unsure)
        found.append(f"note: whether these rungs save work is not sure by so few answers: {names}")
    return found


def _document(config: Config, found: Known, effects: tuple[Effect, ...], order: Order) -> dict[str, Any]:
    from edged.rungs.words import does

    rungs = [
        {
            "name": rung.name,
            "does": does(rung),
            "cost": effect.cost,
            "quality": effect.quality,
            "source": source(rung, effect),
            "measured": known,
        }
        for rung, effect, known in zip(config.governor.ladder, effects, found.figures, strict=True)
    ]
    record = found.record
    return {
        "rungs": rungs,
        "problems": order.problems,
        "unsure": order.unsure,
        "stale": found.stale,
        "questions": len(record.questions) if record else 0,
        "origin": record.origin if record else "",
        "measured_at": record.measured_at if record else "",
    }
