"""Why each candidate of a stage was chosen or not, the other stages staying as planned: pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from edged.dispatch.leases import Mode
from edged.placement.prices import Offer, Option
from edged.placement.search import Found
from edged.placement.table import Form
from edged.plurals import counted

Fate = Literal["chosen", "lost", "dominated", "ruled out"]
PERCENT = 100
ONE_PERCENT = 0.005
"""Less is shown as no difference."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate in the place of the chosen one."""

    form: Form
    batch: int
    workers: int
    fate: Fate
    why: str
    loss: float = 0.0
    """By how much the objective is worse with it, as a share; below 0 it would be better."""
    option: Option | None = None


class Judging(Protocol):
    """What verdicts ask of `aim.Judge`."""

    def value(self, options: Sequence[Option], mode: Mode, /) -> float:
        """The objective."""
        ...

    def objection(self, options: Sequence[Option], mode: Mode, /) -> str:
        """The bound that is broken; empty when none is."""
        ...


def verdicts(offer: Offer, place: int, found: Found, objective: str, judge: Judging) -> list[Verdict]:
    """Every candidate of the stage at `place` of an assignment: the chosen one, then the nearest losers."""
    chosen = found.options[place]
    standard = judge.value(found.options, found.mode)
    judged = []
    for option in offer.options:
        swapped = (*found.options[:place], option, *found.options[place + 1 :])
        if option is chosen:
            judged.append(_verdict(option, "chosen", "", 0.0))
        elif objection := judge.objection(swapped, found.mode):
            judged.append(_verdict(option, "ruled out", objection, 0.0))
        else:
            value = judge.value(swapped, found.mode)
            loss = 1 - value / standard if objective == "throughput" else value / standard - 1
            judged.append(_verdict(option, "lost", _said(option, loss, objective, chosen), loss))
    out = [
        Verdict(form=each.form, batch=each.batch, workers=each.workers, fate="ruled out", why=each.why)
        for each in offer.rejections
    ]
    order = {"chosen": 0, "lost": 1, "ruled out": 2}
    return sorted(judged, key=lambda verdict: (order[verdict.fate], verdict.loss)) + out


def reason(candidates: Sequence[Verdict]) -> tuple[Form | None, str]:
    """The runner-up among the verdicts of a stage, of another form than the chosen one, and why it lost."""
    chosen = next(verdict for verdict in candidates if verdict.fate == "chosen")
    for rival in candidates:
        if rival.form != chosen.form and rival.fate == "lost":
            return rival.form, rival.why
    ruled_out = next((each for each in candidates if each.form != chosen.form), None)
    if ruled_out is None:
        return None, "nothing else was measured"
    return ruled_out.form, f"ruled out: {ruled_out.why}"


def _verdict(option: Option, fate: Fate, why: str, loss: float) -> Verdict:
    return Verdict(
        form=option.form,
        batch=option.batch,
        workers=option.workers,
        fate=fate,
        why=why,
        loss=loss,
        option=option,
    )


def _said(option: Option, loss: float, objective: str, chosen: Option) -> str:
    said = _compared(loss, objective)
    return said if loss >= ONE_PERCENT else f"{said}; {_next_best(option, chosen)}"


def with_dominance(candidates: Sequence[Verdict]) -> list[Verdict]:
    """The same, losers to which another candidate is superior in every respect marked."""
    options = [verdict.option for verdict in candidates if verdict.option is not None]
    return [_marked(verdict, options) for verdict in candidates]


def _marked(verdict: Verdict, options: Sequence[Option]) -> Verdict:
    option = verdict.option
    if option is None or verdict.fate != "lost":
        return verdict
    better = next((other for other in options if dominates(other, option)), None)
    if better is None:
        return verdict
    why = f"{verdict.why}; {_named(better)} is no worse in anything"
    return msgspec.structs.replace(verdict, fate="dominated", why=why)


def _compared(loss: float, objective: str) -> str:
    """The loss in words."""
    if abs(loss) < ONE_PERCENT:
        return "as good"
    share = f"{abs(loss) * PERCENT:.0f} %"
    words = {
        "throughput": ("fewer requests per second", "more requests per second"),
        "latency": ("slower", "faster"),
        "energy": ("more energy", "less energy"),
    }[objective]
    return f"{share} {words[0] if loss > 0 else words[1]}"


def _next_best(option: Option, chosen: Option) -> str:
    """What decides between forms that are equally good by the objective."""
    if option.loaded_latency_s > chosen.loaded_latency_s:
        longer = option.loaded_latency_s / chosen.loaded_latency_s - 1
        return f"but a full batch takes {longer * PERCENT:.0f} % longer"
    if option.memory_bytes > chosen.memory_bytes:
        return f"but it needs {(option.memory_bytes - chosen.memory_bytes) >> 20} MiB more"
    return "within what measurements scatter"


def dominates(one: Option, other: Option) -> bool:
    """Whether an option is on the same silicon, no worse in anything and better in something."""
    if one.form.device != other.form.device:
        return False
    left, right = _criteria(one), _criteria(other)
    return left != right and all(a <= b for a, b in zip(left, right, strict=True))


def _criteria(option: Option) -> tuple[float, ...]:
    return (
        -option.rate_per_s,
        option.cpu_s,
        option.latency_s,
        option.first_s,
        option.loaded_latency_s,
        option.memory_bytes,
        *option.core_s,
    )


def _named(option: Option) -> str:
    form = option.form
    threads = f"{counted(form.threads, 'thread')}, " if form.threads else ""
    workers = counted(option.workers, "worker")
    return f"{form.backend} {form.variant} with {threads}batch {option.batch}, {workers}"
