"""`edgectl rerank`: documents by relevance to a question."""

from __future__ import annotations

import click

from edged.cli.output import print_json, print_table
from edged.cli.session import TEXT, Session, example, json_option, lines_of_input, with_session


@click.command(epilog=example('edgectl rerank "reset the gateway" "Hold the button." "The lease is 12 h."'))
@click.argument("query", type=TEXT)
@click.argument("documents", nargs=-1, type=TEXT)
@click.option("--model", type=TEXT, default="", help="Stage or model; the first reranker when absent.")
@click.option("--top", type=click.IntRange(1), help="Print only the best.")
@json_option
@with_session
def rerank(
    session: Session, query: str, documents: tuple[str, ...], model: str, top: int | None, as_json: bool
) -> None:
    """Order DOCUMENTS by their relevance to QUERY, best first.

    Without DOCUMENTS, every line of standard input is one.
    """
    documents = documents or lines_of_input("DOCUMENTS")
    fields = {} if top is None else {"top_n": top}
    ranked = session.client.rerank(query, documents, model=model, **fields)
    rows = [
        {"index": each.index, "score": each.relevance_score, "document": documents[each.index]}
        for each in ranked
    ]
    if as_json:
        print_json(rows)
    else:
        cells = [(f"{row['score']:.4g}", str(row["index"]), str(row["document"])) for row in rows]
        print_table(("SCORE", "INDEX", "DOCUMENT"), cells)
