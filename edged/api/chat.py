"""POST /v1/chat/completions."""

from __future__ import annotations

import msgspec

from edged.api.answers import ending_of
from edged.api.attendance import Attendance, outcome
from edged.api.endpoint import Reply, Request
from edged.api.gateway import Gateway, answer_headers
from edged.api.metrics import Stopwatch
from edged.api.openai import AnswerMessage, ChatCompletion, ChatRequest, Choice
from edged.api.streaming import ChatStream
from edged.api.validation import chat_task, decode
from edged.config.tables import Rung
from edged.dispatch.requests import Completed
from edged.messages import Ceiling, ChatTask, encode

_encoder = msgspec.json.Encoder()


class Chat:
    """Answers chat requests, streamed or whole."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, request: Request) -> Reply | None:
        """Answer one request."""
        gateway = self._gateway
        wanted = decode(await gateway.body(request), ChatRequest)
        route = gateway.names.route(wanted.model, "chat")
        force = gateway.force()
        task = lowered(chat_task(wanted, grounded=route.grounded), force.settings)
        watch = gateway.metrics.stopwatch(route.name)
        terms = gateway.terms(wanted.deadline_ms, wanted.edged.priority if wanted.edged else None)
        ticket = gateway.submit(request, route, "chat", encode(task), terms)
        if wanted.stream:
            options = wanted.stream_options
            usage = bool(options and options.include_usage)
            stream = ChatStream(
                request, ticket, route.name, watch, plan=gateway.plan(route), rung=force.name, usage=usage
            )
            await stream.run()
            return None
        with Attendance(request, ticket.cancel):
            completed = await outcome(ticket, watch.first_token)
        return whole_answer(completed, request, route.name, watch, force.name)


def lowered(task: ChatTask, doing: Rung) -> ChatTask:
    """The task with what a rung leaves of it."""
    ceiling = Ceiling(doing.candidates, doing.keep, doing.answer_tokens)
    return msgspec.structs.replace(task, ceiling=ceiling) if ceiling != task.ceiling else task


def whole_answer(completed: Completed, request: Request, model: str, watch: Stopwatch, rung: str) -> Reply:
    """Make the body of an answer that is not streamed."""
    ending = ending_of(completed, request.id, rung)
    answer = ending.answer
    message = AnswerMessage(
        role="assistant",
        content=answer.text,
        refusal=None,
        citations=ending.citations,
        passages=ending.passages,
    )
    body = ChatCompletion(
        id=f"chatcmpl-{request.id}",
        created=watch.created,
        model=model,
        choices=(Choice(message=message, finish_reason=answer.finish),),
        usage=ending.usage,
        edged=ending.edged,
    )
    watch.completed(completed, ending.usage.prompt_tokens, ending.usage.completion_tokens)
    return Reply(_encoder.encode(body), headers=answer_headers(completed, rung, ending.edged.resumed))
