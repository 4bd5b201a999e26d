"""What splitting a model by layers buys and what it does not, in plain words. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from edged.layers.planning.partition import mib
from edged.layers.planning.plan import LayerPlan
from edged.plurals import counted


def words(plan: LayerPlan) -> tuple[str, ...]:
    """Say what to expect of a plan: memory, speed for the planned requests, and what the figures rest on."""
    return (*_memory(plan), *_waiting(plan), *_speed(plan), *_footing(plan))


def _memory(plan: LayerPlan) -> Iterator[str]:
    held = [stage.weight_bytes for stage in plan.stages]
    if any(held):
        kept = max(stage.weight_bytes + stage.cache_bytes for stage in plan.stages)
        yield f"memory: no device holds more than {mib(kept)} of weights and KV cache"
        yield (
            f"memory: weights and KV cache as {plan.dtype}, as torch_pipeline unpacks them; llama_cpp keeps "
            "weights as they are in the file"
        )
    if plan.fits_alone is False:
        yield "memory: no single one of these devices has room for the whole model: the split makes it run"


def _waiting(plan: LayerPlan) -> Iterator[str]:
    if plan.waiting:
        room = f"{counted(plan.micro_batches, 'micro-batch')} of {plan.micro_batch}"
        yield (
            f"requests: of {plan.requests + plan.waiting} at a time, {plan.waiting} "
            f"{'waits' if plan.waiting == 1 else 'wait'} for the others: there is room for {room}; raise "
            "--micro-batches or --micro-batch"
        )


def _speed(plan: LayerPlan) -> Iterator[str]:
    count = len(plan.stages)
    if count == 1:
        yield f"speed: one stage on {plan.stages[0].device} is best for this; nothing is split"
        return
    at_a_time = f"{counted(plan.requests, 'request')} at a time"
    live = plan.micro_batches - plan.spare_micro_batches
    if live == 1 or plan.mode == "naive":
        yield (
            f"speed: with {at_a_time} the stages take turns, and {plan.times_one_device:.2f} times the "
            f"tokens/s of {plan.alone} alone is to be expected: this gives room for the model, not speed"
        )
    else:
        yield (
            f"speed: with {at_a_time}, {plan.times_one_device:.2f} times the tokens/s that {plan.alone} "
            f"alone reaches with the same micro-batches of {plan.micro_batch}, one after the other"
        )
    yield from _limits(plan, live)


def _limits(plan: LayerPlan, live: int) -> Iterator[str]:
    count = len(plan.stages)
    if live > 1:
        yield (
            f"speed: and {plan.times_one_batch:.2f} times what {plan.alone} would reach with room for all "
            f"{plan.requests} in one batch, while decoding waits for memory: each micro-batch reads the "
            "weights again, so the gain is in requests under way, not in cutting a batch up"
        )
    if live < count and plan.mode != "naive":
        yield (
            f"speed: {count * plan.micro_batch} requests at a time ({count} micro-batches of "
            f"{plan.micro_batch}) keep all {count} stages busy; fewer leave stages waiting"
        )
    if plan.mode in {"flush", "naive"}:
        yield f"speed: mode {plan.mode} empties the pipeline on purpose; ring does not"
    yield "speed: one answer does not get faster: its tokens pass all layers one after the other"


def _footing(plan: LayerPlan) -> Iterator[str]:
    if plan.tokens_per_s is None:
        yield "figures: only the number of layers is known: all count as equal, and the ends cost nothing"
    elif not plan.measured:
        yield (
            "figures: nothing was measured; seconds are estimated from bytes and memory bandwidth, so that "
            "ratios mean more than seconds"
        )
    if plan.fits_alone is None and plan.decode_hop_bytes:
        yield "figures: memory is checked where it is known: give DEVICE@MEMORY to have it checked"
