"""What the batch stages share: reading an option, and letting an item fail alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from edged.errors import ConfigError, DeviceLost, EdgedError

Given = TypeVar("Given")
Result = TypeVar("Result")

KEEP, MOST_KEEP = 4, 64
"""Passages that a reranker keeps when nothing is said, and at most."""


def count_option(options: Mapping[str, Any], name: str, *, default: int, most: int) -> int:
    """An option that is a whole number from 1 to `most`; else `ConfigError`.

    >>> count_option({"keep": 3}, "keep", default=4, most=64)
    3
    """
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigError(f"option {name!r} is {value!r}; give a whole number from 1 to {most}", param=name)
    return value


def at_most(count: int, ceiling: int) -> int:
    """A count under a ceiling; 0 is none.

    >>> at_most(4, 2), at_most(4, 0)
    (2, 4)
    """
    return min(count, ceiling) if ceiling else count


def each(function: Callable[[Given], Result], given: Given) -> Result | EdgedError:
    """The result, or the error that fails this item alone; a lost device concerns all and is raised."""
    try:
        return function(given)
    except DeviceLost:
        raise
    except EdgedError as error:
        return error
