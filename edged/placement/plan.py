"""From table, limits and objective to the best placement, with the reasons: pure, and exact for edge sizes.

First the best value of the objective is found among all assignments (`search.py` over the model of
`flow.py`). Then, among the assignments that come within `INDIFFERENCE` of it, which is less than measurements
scatter, the one that is best in what a user notices next: the time in a full batch where the objective is
throughput, the rate where it is latency or energy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256

import msgspec

from edged.dispatch.leases import Mode, chosen
from edged.errors import NotFound
from edged.placement.aim import GOALS, Aim, Judge, second_task
from edged.placement.completeness import lacking
from edged.placement.flow import Flow, flow
from edged.placement.interference import Interference
from edged.placement.limits import Limits, Wishes
from edged.placement.modes import suited
from edged.placement.prices import Option, Prices
from edged.placement.search import Found, Machine, Task, best
from edged.placement.table import Choice, Form, Plan, Table
from edged.placement.verdicts import Verdict, reason, verdicts, with_dominance
from edged.plurals import counted


class Planner:
    """A table under limits and wishes; asks nothing of the world."""

    def __init__(self, table: Table, wishes: Mapping[str, Wishes], limits: Limits) -> None:
        self._table, self._limits = table, limits
        self._prices = Prices(table)
        self._offers = {name: self._prices.offer(name, wish, limits) for name, wish in wishes.items()}
        self._machine = Machine(
            cores=limits.cores,
            interference=Interference(table, self._prices, limits.cores),
            joules=all(o.joules is not None for offer in self._offers.values() for o in offer.options),
        )

    def plan(self, aim: Aim) -> Plan:
        """The best placement; `NotFound` says which stage or bound rules all of them out."""
        found = self.search(aim)
        return self._written(found, aim)

    def search(self, aim: Aim) -> Found:
        """The best assignment in two steps, see the module; `NotFound` as `plan`.

        A mode that the operator wrote is kept where no assignment suits it.
        """
        offers = [self._options(name) for name in self._offers]
        found = self._best(self._suited(offers), aim)
        if found is None and len(self._limits.modes) == 1:
            found = self._best(dict.fromkeys(self._limits.modes, offers), aim)
        if found is None:
            raise NotFound(self._why_nothing(aim), param="objective")
        return found

    def _best(self, by_mode: Mapping[Mode, Sequence[Sequence[Option]]], aim: Aim) -> Found | None:
        ceilings = aim.ceilings(self._limits)
        first = Task(goal=GOALS[aim.objective], ceilings=ceilings, floor_per_s=aim.rate_per_s or 0.0)
        found = best(by_mode, first, self._machine)
        return found and (best(by_mode, second_task(first, found, aim), self._machine) or found)

    def _suited(self, offers: Sequence[Sequence[Option]]) -> dict[Mode, Sequence[Sequence[Option]]]:
        """By mode what there is for each stage."""
        return {mode: suited(offers, mode, self._limits.cores) for mode in self._limits.modes}

    def explain(self, stage: str, plan: Plan, aim: Aim) -> list[Verdict]:
        """Every candidate of a stage and why it was not chosen, the others staying as planned."""
        if stage not in self._offers:
            raise NotFound(
                f"there is no stage {stage!r}; there are: {', '.join(self._offers)}", param="stage"
            )
        found = self._found(plan)
        place = list(self._offers).index(stage)
        judged = verdicts(self._offers[stage], place, found, aim.objective, self._judge(aim, found))
        return with_dominance(judged)

    def _options(self, name: str) -> tuple[Option, ...]:
        offer = self._offers[name]
        if not offer.options:
            known = "; ".join(f"{r.form.backend} {r.form.variant}: {r.why}" for r in offer.rejections[:3])
            raise NotFound(
                f"stage {name!r} has no measured form that is allowed ({known or 'none was measured'}); "
                "run: edgectl calibrate",
                param=f"stages.{name}",
            )
        return offer.options

    def _why_nothing(self, aim: Aim) -> str:
        bounds = ", ".join(f"{name} {value:g}" for name, value in aim.bounds.items())
        memory = f"{self._limits.memory_bytes >> 20} MiB"
        within = f"{memory} and {self._limits.cores} cores"
        return f"no placement keeps {bounds or 'the limits'} within {within}; relax one"

    # ------------------------------------------------------------------ words

    def _found(self, plan: Plan) -> Found:
        """A plan as the search would have returned it."""
        found = []
        for name, choice in plan.choices.items():
            wanted = (choice.form, choice.batch, choice.workers)
            options = {(o.form, o.batch, o.workers): o for o in self._offers[name].options}
            found.append(options[wanted])
        return Found(options=tuple(found), mode=chosen("auto", plan.lease_mode), value=0.0)

    def _flow(self, options: Sequence[Option], mode: Mode) -> Flow:
        return flow(options, mode, self._limits.cores, self._machine.interference)

    def _judge(self, aim: Aim, found: Found) -> Judge:
        return Judge(aim, self._limits, self._machine, found)

    def _written(self, found: Found, aim: Aim) -> Plan:
        running = self._flow(found.options, found.mode)
        choices = dict(zip(self._offers, self._choices(found, running, aim), strict=True))
        return Plan(
            id=identity(choices, found.mode),
            objective=aim.objective,
            bounds=aim.bounds,
            choices=choices,
            lease_mode=found.mode,
            bottleneck=list(self._offers)[running.bottleneck],
            predicted_rate_per_s=running.rate_per_s,
            predicted_latency_s=sum(option.latency_s for option in found.options),
            predicted_first_token_s=sum(option.first_s for option in found.options),
            predicted_loaded_latency_s=sum(option.loaded_latency_s for option in found.options),
            predicted_cpu_s=sum(option.cpu_s for option in found.options),
            predicted_joules=sum(o.joules or 0.0 for o in found.options) if self._machine.joules else None,
            memory_bytes=sum(option.memory_bytes for option in found.options),
            fingerprint=self._table.fingerprint,
            notes=tuple(self._notes(found, aim)),
        )

    def _choices(self, found: Found, running: Flow, aim: Aim) -> Iterator[Choice]:
        for place, (offer, option) in enumerate(zip(self._offers.values(), found.options, strict=True)):
            rivals = verdicts(offer, place, found, aim.objective, self._judge(aim, found))
            runner_up, why = reason(rivals)
            yield Choice(
                form=option.form,
                batch=option.batch,
                workers=option.workers,
                predicted_rate_per_s=option.rate_per_s,
                latency_s=option.latency_s,
                loaded_latency_s=option.loaded_latency_s,
                cpu_s=option.cpu_s,
                utilisation=running.utilisation[place],
                memory_bytes=option.memory_bytes,
                runner_up=runner_up,
                why=why,
            )

    def _notes(self, found: Found, aim: Aim) -> Iterator[str]:
        if missing := lacking(self._table, self._offers):
            yield f"the calibration is not complete ({', '.join(missing)}); `edgectl calibrate` goes on"
        if self._machine.interference.nothing_known and len(found.options) > 1:
            yield "no pair of stages was measured together: contention is left out of the prediction"
        if not self._machine.joules and (aim.objective == "energy" or aim.energy is not None):
            yield "this machine measures no energy: CPU seconds per request stand for joules"
        for stage, option in zip(self._offers, found.options, strict=True):
            if dict(option.form.options).get("exact") is False:
                yield (
                    f"{stage} runs with exact = false: faster, but equal questions may get unlike answers in "
                    "other company, and an interrupted answer is repeated from its prompt (decision 0011); "
                    "`--exact` plans without it"
                )
            if self._prices.unweighed(option.form):
                yield f"the memory of {stage} was not measured"


def identity(choices: Mapping[str, Choice], mode: str) -> str:
    """A short name of an assignment."""
    told = [(name, choice.form, choice.batch, choice.workers) for name, choice in choices.items()]
    return sha256(msgspec.json.encode([mode, told])).hexdigest()[:8]


def label(form: Form) -> str:
    """A form for people.

    >>> label(Form(stage="g", model="m", variant="q4_0", backend="openvino", device="cpu", threads=2))
    'openvino cpu q4_0, 2 threads'
    """
    parts = [f"{form.backend} {form.device} {form.variant}"]
    parts += [counted(form.threads, "thread")] if form.threads else []
    return ", ".join(parts + [f"{name} = {str(value).lower()}" for name, value in form.options])
