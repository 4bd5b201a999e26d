"""Questions that the operator brings: JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from edged.errors import BadRequest, UnknownField
from edged.rungs.record import Place, Question

MOST_BYTES = 1 << 20
"""Of a line."""
LOOKS = '{"question": "At which level does the pump start?", "relevant": ["manual.md"], "answer": "80 cm"}'
"""A line as it should be."""


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question as it is written; at least one of `relevant` and `answer` is needed."""

    question: str
    relevant: tuple[Place | str, ...] = ()
    """Documents, or places in them."""
    answer: str = ""


def _anywhere(_place: Place) -> str:
    return ""


def questions_in(
    lines: Iterable[str], name: str, lacking: Callable[[Place], str] = _anywhere
) -> tuple[Question, ...]:
    """Read a file of questions; `BadRequest` names the line and the field that is wrong.

    `lacking` says why a place cannot be found, or nothing.
    """
    found = [_question(text, f"{name}, line {n}", lacking) for n, text in enumerate(lines, 1) if text.strip()]
    if not found:
        raise BadRequest(f"{name} has no questions; a line looks like {LOOKS}", param="questions")
    return tuple(found)


def _question(text: str, where: str, lacking: Callable[[Place], str]) -> Question:
    line = _decoded(text, where)
    if not line.question.strip():
        raise BadRequest(f"{where}: question is empty", param="question")
    if not line.relevant and not line.answer.strip():
        raise BadRequest(
            f"{where}: neither relevant nor answer is given; name the document that answers it, as in "
            '"relevant": ["manual.md"], or what has to be said, as in "answer": "80 cm"',
            param="relevant",
        )
    places = tuple(_place(each, where) for each in line.relevant)
    if why := next(filter(None, map(lacking, places)), ""):
        raise BadRequest(f"{where}: {why}", param="relevant")
    return Question(
        text=line.question,
        relevant=places,
        answer=line.answer.strip(),
    )


def _decoded(text: str, where: str) -> Line:
    if len(text) > MOST_BYTES:
        raise BadRequest(f"{where}: is longer than {MOST_BYTES} characters")
    try:
        return msgspec.json.decode(text, type=Line)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        unknown = message.startswith("Object contains unknown field")
        field = message.rpartition("field ")[2].strip("`") if unknown else path.rstrip("`")
        kind = UnknownField if unknown else BadRequest
        more = f" ({field})" if path else "" if unknown else f"; a line looks like {LOOKS}"
        raise kind(f"{where}: {message}{more}", param=field or None) from error
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise BadRequest(f"{where}: is no JSON object ({error}); a line looks like {LOOKS}") from error


def _place(given: Place | str, where: str) -> Place:
    place = Place(source=given) if isinstance(given, str) else given
    if not place.source.strip():
        raise BadRequest(f"{where}: relevant names a document without a source", param="relevant")
    if (
        place.first_line < 0
        or place.last_line < 0
        or (place.last_line and place.last_line < place.first_line)
    ):
        raise BadRequest(
            f"{where}: relevant names the lines {place.first_line} to {place.last_line}", param="relevant"
        )
    return place
