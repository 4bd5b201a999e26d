"""Any OpenAI-compatible server as a generator: vLLM, llama-server, Ray Serve, another edged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from edged.backend import Capabilities, Device, TokenSession, Variant
from edged.breaker import Breaker
from edged.errors import BackendError, ConfigError
from edged_backends.openai_http import Target, check_address
from edged_backends.openai_key import read_key
from edged_backends.openai_request import DialectName
from edged_backends.openai_tokens import OpenaiTokenSession, Shape
from edged_backends.options import read_options

Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `options` of a stage may say to this adapter."""

    base_url: str = ""
    """`https://host:8000/v1`, or `unix:/run/server.sock`."""
    model: str = ""
    """The server's name for the model; empty means the stage's `model`."""
    dialect: DialectName = "openai"
    """Which kind of server it is: what it takes beyond OpenAI's fields, and whether it continues answers."""
    api_key_file: str = ""
    """Absolute path, or the name of a credential below $CREDENTIALS_DIRECTORY; empty: no key."""
    ca_file: str = ""
    """Certificates of the authority that signed the server's; empty: the public ones."""
    plain_http: bool = False
    """Send the key over http to another machine."""
    connect_timeout_s: Seconds = 5.0
    timeout_s: Seconds = 60.0
    """Silence of the server, before the first word or between two, after which it has failed."""
    retries: Annotated[int, msgspec.Meta(ge=0, le=10)] = 2
    """How often an answer is asked for again, or continued, after the server failed."""
    failures_to_open: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    """Failures in a row after which the server is left alone for a while."""
    first_wait_s: Seconds = 1.0
    """The while; it doubles with every trial that fails."""
    longest_wait_s: Seconds = 60.0
    context_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """0 means what the server says (vLLM does), else 4096."""
    max_sequences: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 8
    """Requests at a time."""


class OpenaiBackend:
    """Servers that speak the OpenAI API."""

    name = "openai"
    formats = ("none",)

    def devices(self) -> list[Device]:
        """One: wherever the server computes."""
        capabilities = Capabilities(dtypes=(), max_sequences=1024)
        return [
            Device(
                id="remote",
                kind="remote",
                name="an OpenAI-compatible server (base_url)",
                backend=self.name,
                capabilities=capabilities,
            )
        ]

    def open(self, variant: Variant, device: Device, options: Mapping[str, Any], /) -> TokenSession:
        """Prepare the connection; see `Options`. A server that is down now is asked again later."""
        settings = read_options(Options, options, self.name)
        if variant.task != "generate":
            raise BackendError(f"the backend openai generates; it has no task {variant.task!r}")
        if device.id != "remote":
            raise BackendError(f"the backend openai has the device remote, not {device.id}")
        if not settings.base_url:
            raise ConfigError("the backend openai needs the option base_url", param="base_url")
        check_address(settings.base_url, key=bool(settings.api_key_file), plain_http=settings.plain_http)
        read_key(settings.api_key_file)
        breaker = Breaker(settings.failures_to_open, settings.first_wait_s, settings.longest_wait_s)
        session = OpenaiTokenSession(_target(settings, variant), _shape(settings), breaker)
        try:
            session.greet()
        except ConfigError:
            session.close()
            raise
        return session


def _target(settings: Options, variant: Variant) -> Target:
    return Target(
        base_url=settings.base_url,
        model=settings.model or variant.model,
        api_key_file=settings.api_key_file,
        ca_file=settings.ca_file,
        connect_timeout_s=settings.connect_timeout_s,
        timeout_s=settings.timeout_s,
        connections=settings.max_sequences + 1,
    )


def _shape(settings: Options) -> Shape:
    return Shape(settings.dialect, settings.max_sequences, settings.context_tokens, 1 + settings.retries)
