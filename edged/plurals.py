"""Numbers of things, in words. Pure."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Write a number of things.

    >>> counted(1, "stage"), counted(2, "stage"), counted(0, "stage"), counted(2, "micro-batch")
    ('1 stage', '2 stages', '0 stages', '2 micro-batches')
    """
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('ch') else 's'}"
