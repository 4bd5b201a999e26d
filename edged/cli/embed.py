"""`edgectl embed`: texts to vectors."""

from __future__ import annotations

import click
import msgspec

from edged.cli.output import print_json
from edged.cli.session import TEXT, Session, example, json_option, lines_of_input, with_session


@click.command(epilog=example('edgectl embed --query "How long does a lease last?"'))
@click.argument("texts", nargs=-1, type=TEXT)
@click.option("--model", type=TEXT, default="", help="Stage or model; the first retriever when absent.")
@click.option("--query", is_flag=True, help="The texts are questions; some models embed these differently.")
@json_option
@with_session
def embed(session: Session, texts: tuple[str, ...], model: str, query: bool, as_json: bool) -> None:
    """Turn TEXTS into vectors, one JSON array a line.

    Without TEXTS, every line of standard input is one.
    """
    texts = texts or lines_of_input("TEXTS")
    kind = "query" if query else "passage"
    vectors = session.client.embed(texts, model=model, input_type=kind)
    if as_json:
        print_json([{"text": text, "vector": vector} for text, vector in zip(texts, vectors, strict=True)])
        return
    for vector in vectors:
        click.echo(msgspec.json.encode(vector))
