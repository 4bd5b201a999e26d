"""`edgectl layers run`: answers from a model laid over several devices, checked against one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from edged.cli.layers_model import Devices, overlap_options, source_of, variant_of
from edged.cli.output import print_json, print_table, progress_bar, readable_bytes, visible_text
from edged.cli.session import TEXT, Session, example, json_option, with_session
from edged.errors import ConfigError
from edged.layers.schedule import Mode
from edged.layers.spec import Transport

if TYPE_CHECKING:
    from edged.layers.trial import PipelineSession, Ran

PROMPTS = (
    "Once upon a time, in a village by the sea, there lived",
    "Here is a list of the days of the week and what people do on each of them:\n",
    "The capital of France is",
    "Water boils at",
    "The router has three lights. The first light shows that the power is on. The second",
    "A",
    "To bake bread you need flour, water, salt and yeast. First",
    "The three primary colours are red,",
)
"""Of unlike length, for a run that names none."""
FAILED = 1


@click.command(
    epilog=example(
        "edgectl layers run --model smollm2-135m-instruct:q4_1 --stages 2 --check",
        'edgectl layers run --model ./model --devices cuda:0,cuda:1 --prompt "Once upon a time"',
    )
)
@click.option(
    "--model", type=TEXT, required=True, metavar="MODEL", help="As for `edgectl layers plan`, or random:..."
)
@click.option("--stages", type=click.IntRange(1, 64), help="So many stages on the CPU.")
@click.option("--devices", type=TEXT, metavar="NAME,...", help="One stage each, in the order of the layers.")
@click.option("--layers", type=TEXT, metavar="COUNT,...", help="Layers of each device  [balanced].")
@click.option("--even", is_flag=True, help="Equal numbers of layers.")
@click.option("--micro-batches", type=click.IntRange(1, 1024), help="Under way at a time  [one a stage].")
@click.option("--max-sequences", type=click.IntRange(1, 1024), default=8, show_default=True)
@click.option("--context-tokens", type=click.IntRange(16), default=512, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=16, show_default=True, help="Of each answer.")
@click.option("--prompt", "prompts", type=TEXT, multiple=True, help="Repeatable  [eight of unlike length].")
@click.option("--mode", type=click.Choice(get_args(Mode)), default="ring", show_default=True)
@click.option(
    "--transport", type=click.Choice(["auto", *get_args(Transport)]), default="auto", show_default=True
)
@overlap_options
@click.option(
    "--check",
    is_flag=True,
    help="In float32, compare with the first device alone; exit code 1 when a token differs.",
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write FILE.png and FILE.svg.")
@json_option
@with_session
def run(
    session: Session,
    /,
    model: str,
    prompts: tuple[str, ...],
    tokens: int,
    check: bool,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Answer prompts with a model laid over several devices, without the daemon."""
    devices = Devices.of(options.pop("stages"), options.pop("devices"), options.pop("layers"))
    settings = {key: value for key, value in options.items() if value is not None}
    settings["split"] = "even" if settings.pop("even") else "weighted"
    settings["state_dir"] = str(session.config.daemon.state_dir)
    source = source_of(session, model)
    texts = prompts or PROMPTS
    if check:
        settings["dtype"] = "float32"  # in bfloat16 the shape of a batch can turn a token
    ran, held, said = _answers(source, settings | devices.options(), texts, tokens, plot)
    alone = {"devices": list(devices.names[:1]), "micro_batches": ran.micro_batches, "dtype": "float32"}
    shape = {key: settings[key] for key in ("max_sequences", "context_tokens")}
    single = _answers(source, shape | alone, texts, tokens, None)[0] if check else None
    differing = _differing(ran.answers, single.answers) if single else []
    if as_json:
        told: dict[str, Any] = {"run": ran, "stages": held, "texts": said}
        print_json(told | ({"identical": not differing, "differing": differing} if single else {}))
    else:
        _print(ran, held, list(zip(texts, said, strict=True)))
        if single:
            click.echo(f"one device gives {_verdict(differing, len(texts))}")
    return FAILED if differing else 0


def _answers(
    source: str, settings: dict[str, Any], texts: Sequence[str], tokens: int, plot: Path | None
) -> tuple[Ran, list[Any], list[str]]:
    from edged.plugins import load

    backend = load("torch_pipeline")  # first: it says what to install where torch is missing
    from edged.layers import timeline, trial

    variant = variant_of(source)
    session = cast("PipelineSession", backend.open(variant, backend.devices()[0], settings))
    try:
        if plot:
            session.meter.keep_timeline()
        prompts = [session.vocabulary.encode(text, special=False) for text in texts]
        if not all(prompts):
            raise ConfigError("a prompt has no tokens; write some text", param="--prompt")
        with progress_bar() as bar:
            task = bar.add_task("tokens", total=tokens * len(prompts))
            ran = trial.run(session, prompts, tokens, lambda done, _: bar.update(task, completed=done))
        if plot:
            timeline.save(session.meter.timeline or (), title_of(ran), plot)
        return ran, list(session.loaded), [session.vocabulary.decode(answer) for answer in ran.answers]
    finally:
        session.close()


def title_of(ran: Ran) -> str:
    """Name a run above its picture."""
    return f"{ran.stages} stages, {ran.micro_batches} micro-batches, {ran.mode}: bubble {ran.bubble:.2f}"


def _differing(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> list[dict[str, int]]:
    """Name the prompts whose answers differ, and the first token at which they do."""
    found = []
    for prompt, (left, right) in enumerate(zip(one, other, strict=True)):
        if tuple(left) != tuple(right):
            pairs = zip(left, right, strict=False)
            at = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
            found.append({"prompt": prompt, "token": at})
    return found


def _verdict(differing: Sequence[dict[str, int]], prompts: int) -> str:
    if not differing:
        return f"the same tokens for all {prompts} prompts"
    places = ", ".join(f"prompt {each['prompt']} from token {each['token']}" for each in differing)
    return f"other tokens for {len(differing)} of {prompts} prompts: {places}"


def _print(ran: Ran, held: Sequence[Any], said: Sequence[tuple[str, str]]) -> None:
    for prompt, answer in said:
        click.echo(f"{visible_text(prompt.strip())} {click.style(visible_text(answer.strip()), bold=True)}\n")
    rows = [
        (
            str(stage.stage),
            str(stage.layers),
            readable_bytes(stage.weight_bytes),
            readable_bytes(stage.cache_bytes),
            f"{times.busy_s:.2f}",
            f"{times.wait_receive_s:.2f}",
            f"{times.wait_send_s:.2f}",
            f"{times.copy_s:.2f}",
        )
        for stage, times in zip(held, ran.times, strict=True)
    ]
    headings = ("STAGE", "LAYERS", "WEIGHTS", "KV CACHE", "BUSY S", "WAIT IN S", "WAIT OUT S", "COPY S")
    print_table(headings, rows)
    click.echo(
        f"{ran.tokens} tokens in {ran.seconds:.1f} s, {ran.tokens_per_s:.1f} tokens/s, bubble "
        f"{ran.bubble:.2f} (equal stages, decode only: {ran.formula:.2f})"
    )
