"""How a generation's end looks to a client: finish, citations, usage and timings."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edged.api.openai import CitationInfo, EdgedInfo, PassageInfo, Usage
from edged.dispatch.requests import Completed
from edged.messages import Answer, Citation, Passage, decoder

decode_answer: Callable[[bytes], Answer] = decoder(Answer)


class Ending(msgspec.Struct, frozen=True):
    """The parts of an answer that come last, streamed or not."""

    answer: Answer
    citations: list[CitationInfo]
    usage: Usage
    edged: EdgedInfo

    @property
    def passages(self) -> list[PassageInfo] | msgspec.UnsetType:
        """What an answer would be written from, where that was asked."""
        return [passage_info(passage) for passage in self.answer.passages] or msgspec.UNSET


def ending_of(completed: Completed, request_id: str, rung: str) -> Ending:
    """Decode the generator's answer; `ProtocolError` when it is malformed."""
    answer = decode_answer(completed.payload)
    used = answer.prompt_tokens + answer.completion_tokens
    usage = Usage(answer.prompt_tokens, answer.completion_tokens, used)
    resumed = max(completed.resumed, answer.resumed)
    info = EdgedInfo(
        request_id=request_id,
        model=answer.model,
        timings=completed.timings,
        resumed=resumed,
        rung=rung,
        bypassed=completed.skipped,
        node=completed.node,
    )
    return Ending(answer, [citation_info(citation) for citation in answer.citations], usage, info)


def info_of(completed: Completed, request_id: str, model: str, rung: str) -> EdgedInfo:
    """Say what edged did for a request."""
    return EdgedInfo(
        request_id=request_id,
        model=model,
        timings=completed.timings,
        resumed=completed.resumed,
        rung=rung,
        node=completed.node,
    )


def passage_info(passage: Passage) -> PassageInfo:
    """Write a passage for clients."""
    return PassageInfo(**msgspec.structs.asdict(passage))


def citation_info(citation: Citation) -> CitationInfo:
    """Flatten a citation for clients."""
    passage = citation.passage
    return CitationInfo(
        number=citation.number,
        source=passage.source,
        title=passage.title,
        heading=passage.heading,
        first_line=passage.first_line,
        last_line=passage.last_line,
        page=passage.page,
        quote=citation.quote,
        support=citation.support,
        text=passage.text,
    )
