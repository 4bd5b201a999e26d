"""LitServe: static batches without streaming, or its continuous-batching loop with streaming."""

from typing import Any

import litserve
import msgspec
from litserve.loops.continuous_batching_loop import ContinuousBatchingLoop, Output
from litserve.utils import LitAPIStatus

from benchmarks.contenders.lane import Ask, Lane
from benchmarks.contenders.settings import settings
from benchmarks.contenders.work import Engine, Front, Piece

given = settings()


class Batch(litserve.LitAPI):
    """A static batch, answered to its end."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        self._front = Front(given)
        self._engine = Engine(given)

    def decode_request(self, request) -> Ask:  # noqa: ANN001 - LitServe makes a query parameter of what is annotated
        return msgspec.convert(request, Ask)

    def batch(self, inputs: list[Ask]) -> list[Ask]:
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def predict(self, x: list[Ask] | Ask) -> Any:
        asks = x if isinstance(x, list) else [x]
        found = [self._front.passages(ask.question) for ask in asks]
        prompts = [
            self._engine.prompt(ask.question, passages, ask.max_tokens)
            for ask, passages in zip(asks, found, strict=True)
        ]
        replies = self._engine.finish(prompts)
        return replies if isinstance(x, list) else replies[0]

    def encode_response(self, output: Any) -> Any:
        return {"reply": msgspec.to_builtins(output)}


class Streaming(litserve.LitAPI):
    """A lane under LitServe's continuous-batching loop."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        self._lane = Lane(given)

    def add_request(self, uid: str, request: dict[str, Any]) -> None:
        self._lane.put(uid, msgspec.convert(request, Ask))

    def has_capacity(self) -> bool:
        return self._lane.room > 0

    def has_active_requests(self) -> bool:
        return self._lane.busy

    def step(self, previous: Any) -> list[Output]:  # noqa: ARG002 - LitServe's signature
        """Turn until there is something to send: the loop takes an empty answer for a fault."""
        pieces: list[Piece] = []
        while self._lane.busy and not pieces:
            pieces = self._lane.turn()
        return [output for piece in pieces for output in _outputs(piece)]

    def decode_request(self, request) -> Any:  # noqa: ANN001
        return request

    def predict(self, x: Any) -> Any:  # noqa: ARG002 - LitServe's signature
        raise RuntimeError("the loop calls step")

    def encode_response(self, output: Piece | None) -> str:
        if output is None:
            return ""
        data = msgspec.json.encode({"text": output.text, "reply": output.reply}).decode()
        return f"data: {data}\n\n"


def _outputs(piece: Piece) -> list[Output]:
    outputs = [Output(piece.key, piece, LitAPIStatus.OK)]
    if piece.reply:
        outputs.append(Output(piece.key, None, LitAPIStatus.FINISH_STREAMING))
    return outputs


def main() -> None:
    """Serve until killed."""
    host, _, port = given.address.partition(":")
    api: litserve.LitAPI
    if given.wait_s < 0:
        api = Streaming(stream=True, loop=ContinuousBatchingLoop(), api_path="/ask")
    else:
        size = given.sequences
        api = Batch(max_batch_size=size, batch_timeout=given.wait_s if size > 1 else 0.0, api_path="/ask")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=given.replicas, timeout=300)
    server.run(host=host, port=int(port), num_api_servers=1, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main()
