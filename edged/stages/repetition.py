"""When a small model goes round in circles."""

TIMES = 3
SHORTEST, LONGEST = 12, 120
"""Characters of a phrase whose repetition is a circle: shorter ones (`10.0.0.`) occur in honest text."""


def circling(text: str) -> bool:
    """Whether a text ends with the same phrase three times in a row.

    >>> circling("It is used to display the time. " * 3)
    True
    >>> circling("It is used to display the time. Wait. It is used to display the time.")
    False
    """
    return any(
        text.endswith(text[-length:] * TIMES)
        for length in range(SHORTEST, min(LONGEST, len(text) // TIMES) + 1)
    )
