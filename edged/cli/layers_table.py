"""A plan of a layer pipeline as a table, with what it buys."""

from __future__ import annotations

from collections.abc import Sequence

import click

from edged.cli.output import print_table, readable_bytes, readable_seconds, visible
from edged.layers.planning.options import as_toml, options_of
from edged.layers.planning.plan import LayerPlan, PlannedStage
from edged.plurals import counted

HEADINGS = ("STAGE", "DEVICE", "LAYERS", "FROM-TO", "ENDS", "WEIGHTS", "KV CACHE", "STEP")
UNNAMED = "device:"
"""How `--stages` calls devices that it knows nothing about."""


def print_layer_plan(plan: LayerPlan, words: Sequence[str]) -> None:
    """Print stages, what moves between them, and what to expect."""
    held = f" as {plan.dtype}" if plan.dtype else ""
    click.echo(
        f"{counted(plan.layers, 'layer')}{held} over {counted(len(plan.stages), 'stage')} ({plan.kind}), "
        f"mode {plan.mode}, {counted(plan.micro_batches, 'micro-batch')} of {plan.micro_batch}, context of "
        f"{counted(plan.context_tokens, 'token')}"
    )
    click.echo()
    known = plan.tokens_per_s is not None
    print_table(HEADINGS, [_row(number, stage, known) for number, stage in enumerate(plan.stages)])
    click.echo()
    for line in _figures(plan):
        click.echo(line)
    for line in _options(plan):
        click.echo(visible(line))
    for each in plan.dropped:
        click.echo(f"left out: {visible(each.device)}: {each.why}")
    for line in words:
        click.echo(visible(line))


def _row(number: int, stage: PlannedStage, known: bool) -> tuple[str, ...]:
    share = stage.share
    ends = [name for name, held in (("embedding", share.embedding), ("head", share.head)) if held]
    return (
        str(number),
        stage.device,
        str(share.layers),
        f"{share.first}-{share.end - 1}",
        " ".join(ends) or "-",
        readable_bytes(stage.weight_bytes) if stage.weight_bytes else "-",
        readable_bytes(stage.cache_bytes) if stage.cache_bytes else "-",
        readable_seconds(stage.seconds) if known else f"{stage.seconds:g} layers",
    )


def _options(plan: LayerPlan) -> list[str]:
    """Write the plan as a generator's options, for each engine that can run it."""
    if any(stage.device.startswith(UNNAMED) for stage in plan.stages):
        return []
    found, refused = options_of(plan)
    return [
        *(f"for {name}: options = {as_toml(options)}" for name, options in found.items()),
        *(f"not for {name}: {why}" for name, why in refused.items()),
    ]


def _figures(plan: LayerPlan) -> list[str]:
    lines = [
        (
            f"bubble: {plan.bubble:.1%} predicted; {plan.bubble_formula:.1%} for stages that are alike, with "
            f"{counted(plan.micro_batches, 'micro-batch')} under way"
        )
    ]
    if plan.decode_hop_bytes and len(plan.stages) > 1:
        lines.append(
            f"a micro-batch hands on {plan.decode_hop_bytes:,} bytes a token, and "
            f"{readable_bytes(plan.prefill_hop_bytes)} for prompts of {plan.prompt_tokens} tokens; "
            f"{plan.return_bytes} bytes of ids come back"
        )
    if plan.tokens_per_s is not None:
        how = "measured costs" if plan.measured else "estimated costs"
        lines.append(f"decoding: {plan.tokens_per_s:.1f} tokens/s in all, by {how}")
    return lines
