"""A model file's chat template, rendered as the untrusted program that it is.

Jinja's immutable sandbox keeps the template away from Python; a budget keeps it from running or growing
for ever: every loop turn, call and character produced is charged, and filters and string methods that
can multiply their input are not offered. What might still slip through costs the stage's process its
time limit, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from edged.errors import BadRequest, ModelError

MAX_TEMPLATE_CHARACTERS = 64 << 10
MAX_WORK = 1 << 20
"""Characters of one rendering; a loop turn, a call or a value counts as `_STEP` of them."""
_STEP = 16
_MAX_RANGE = 10_000
_STRING_METHODS = "strip lstrip rstrip split rsplit startswith endswith upper lower title capitalize find"
_FILTERS = (
    "trim length count first last default d lower upper title capitalize int list items reverse "
    "map select reject selectattr rejectattr unique sort dictsort safe"
)
_SCALARS = (str, int, float, type(None), Undefined)


class _Refused(TemplateError):
    """The template itself calls `raise_exception`: this conversation is not for it."""


_FAILURES = (
    TemplateError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
)


class ChatTemplate:
    """A compiled chat template; `ModelError` when it is too large or does not compile."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            limit = f"{len(source)} characters; the limit is {MAX_TEMPLATE_CHARACTERS}"
            raise ModelError(f"the model's chat template has {limit}")
        self._environment = _Bounded()
        try:
            self._template = self._environment.compiled(source)
        except _FAILURES as error:
            raise ModelError(f"the model's chat template does not compile: {_brief(error)}") from error

    def render(self, messages: Sequence[dict[str, str]], beginning: str, end: str) -> str:
        """Render with the turn of the assistant opened.

        Raises `BadRequest` where the template refuses the conversation, `ModelError` where it fails.
        """
        self._environment.left = MAX_WORK
        names = {"bos_token": beginning, "eos_token": end, "add_generation_prompt": True}
        try:
            return self._template.render(messages=messages, **names)
        except _Refused as error:
            raise BadRequest(f"the model's chat template: {_brief(error)}", param="messages") from error
        except _FAILURES as error:
            raise ModelError(f"the model's chat template fails: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200]


class _Charge(NodeTransformer):
    """Send every loop and every `~` through the environment, so that they are charged."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - jinja's name  # noqa: N802 - jinja names it
        self.generic_visit(node)
        node.iter = _through("counted", [node.iter])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802 - jinja's name  # noqa: N802 - jinja names it
        self.generic_visit(node)
        return _through("joined", node.nodes)


def _through(method: str, arguments: Sequence[nodes.Node]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)


class _Bounded(ImmutableSandboxedEnvironment):
    """The sandbox with a budget; one rendering at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            finalize=pass_context(lambda _context, value: self.joined(value)),
        )
        self.left = MAX_WORK
        self.filters = {name: self.filters[name] for name in _FILTERS.split()} | {
            "string": self.joined,
            "tojson": self.json,
            "join": self.glued,
            "replace": self.replaced,
        }
        self.globals = {
            "range": self.range,
            "namespace": Namespace,
            "raise_exception": _refuse,
            "strftime_now": lambda pattern: datetime.now().astimezone().strftime(pattern[:64]),
        }

    def compiled(self, source: str) -> Template:
        tree = _Charge().visit(self.parse(source))
        return self.template_class.from_code(self, self.compile(tree), self.make_globals(None))

    def charge(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise TemplateError(f"it does more work than {MAX_WORK} characters' worth")

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.charge(_STEP)
            yield value

    def joined(self, *values: Any) -> str:
        if not all(isinstance(value, _SCALARS) for value in values):
            raise TemplateError("it prints something that is neither text nor a number")
        text = "".join(map(str, values))
        self.charge(_STEP + len(text))
        return text

    def json(self, value: Any, indent: int | None = None, **_: Any) -> str:
        self.walk(value)
        text = json.dumps(value, ensure_ascii=False, indent=indent and min(indent, 8))
        self.charge(len(text))
        return text

    def glued(self, values: Iterable[Any], separator: str = "") -> str:
        parts = [self.joined(value) for value in self.counted(values)]
        self.charge(len(separator) * len(parts))
        return separator.join(parts)

    def replaced(self, text: str, old: str, new: str) -> str:
        self.charge(len(text) + text.count(old) * len(new))
        return text.replace(old, new)

    def walk(self, value: Any) -> None:
        self.charge(_STEP + (len(value) if isinstance(value, str) else 0))
        children = (
            value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        )
        for child in children:
            self.walk(child)

    def range(self, *limits: int) -> range:
        numbers = range(*limits)
        if len(numbers) > _MAX_RANGE:
            raise TemplateError(f"it asks for a range of more than {_MAX_RANGE}")
        return numbers

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise TemplateError(f"it uses the operator {operator}, which is not offered")
        if operator == "*" and isinstance(left, int) and not isinstance(right, int):
            self.charge(abs(left) * _size(right))
        elif operator == "*" and isinstance(right, int) and not isinstance(left, int):
            self.charge(abs(right) * _size(left))
        else:
            self.charge(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr not in _STRING_METHODS.split():
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"it asks for {attribute!r} of a {type(obj).__name__}, which is not offered")

    def wrap_str_format(self, value: Any) -> None:
        """Offer no `str.format`: its width can be any number."""

    def call(self, context: Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        self.charge(_STEP)
        return super().call(context, function, *arguments, **named)


def _size(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length()
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)
