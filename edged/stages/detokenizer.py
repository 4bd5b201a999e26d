"""From token ids to text, as it becomes certain, and up to a stop string.

Decoding one id at a time is wrong (a character may span tokens, and some vocabularies drop the space at
the beginning of whatever they decode), decoding everything each time is quadratic. So a short window is
decoded: the tokens of the last certain piece, as context, and those behind it; what the window gives
beyond the text of its context is new. The window moves on at every character boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edged.errors import BadRequest

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 64
_REPLACEMENT = "\ufffd"
_MAX_PENDING = 3
"""An incomplete UTF-8 sequence has at most three bytes, so at most three replacement characters."""
_LONG_WINDOW = 32

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Incremental: the text given so far is that of all tokens but an incomplete character at the end.

    What has been given depends on the tokens alone and not on how they were split over `push` calls.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._context = 0
        """How many tokens of the window are there as context only."""
        self._given = 0
        """How many characters of the window's text have been given."""

    def push(self, tokens: Sequence[int]) -> str:
        """Take new tokens, return the text that has become certain."""
        self._window.extend(tokens)
        text = self._decode(self._window)
        certain = _certain(text)
        delta, self._given = text[self._given : certain], max(self._given, certain)
        if certain < len(text):
            self._shorten(text)
        elif delta:
            self._advance()
        elif self._context:
            del self._window[self._context :]
        return delta

    def flush(self) -> str:
        """Return what was held back, at the end of the tokens."""
        text = self._decode(self._window)
        delta, self._given = text[self._given :], len(text)
        return delta

    def _advance(self) -> None:
        del self._window[: self._context]
        self._context = len(self._window)
        self._given = len(self._decode(self._window))

    def _shorten(self, text: str) -> None:
        """Cut a window that invalid bytes keep from advancing, where the two parts decode alike."""
        if len(self._window) <= _LONG_WINDOW:
            return
        for cut in range(len(self._window) - _MAX_PENDING - 1, len(self._window) // 2, -1):
            head = self._decode(self._window[:cut])
            if len(head) <= self._given and head + self._decode(self._window[cut:]) == text:
                del self._window[:cut]
                self._context = 0
                self._given -= len(head)
                return


def _certain(text: str) -> int:
    pending = len(text) - len(text.rstrip(_REPLACEMENT))
    return len(text) - min(pending, _MAX_PENDING)


class StopStrings:
    """Lets text through up to the first stop string, and holds back what may be the start of one.

    The stop string that ends first wins, the longer of two that end together: so the outcome does not
    depend on how the text was split.
    """

    def __init__(self, stops: Sequence[str], own: Sequence[str] = ()) -> None:
        """Stop at the client's `stops`, which are checked, and at the stage's `own`."""
        if len(stops) > MAX_STOP_STRINGS:
            raise BadRequest(f"{len(stops)} stop strings; the limit is {MAX_STOP_STRINGS}", param="stop")
        if not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
            raise BadRequest(f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters", param="stop")
        self._stops = (*stops, *own)
        self._held = ""
        self.reached = False
        """Whether a stop string was seen; nothing comes through any more."""

    def push(self, text: str) -> str:
        """Take text, return what may be shown of it and of what was held back."""
        if self.reached:
            return ""
        text = self._held + text
        if ends := [(text.find(s) + len(s), text.find(s)) for s in self._stops if s in text]:
            self.reached, self._held = True, ""
            return text[: min(ends)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back, when no more text follows."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class TextStream:
    """The text of one answer: detokenised, up to its stop string, and not twice after a resumption."""

    def __init__(
        self, decode: Decode, stops: StopStrings, resume: Sequence[int] = (), characters: int = 0
    ) -> None:
        """Begin behind the tokens `resume`, of whose text the client has the first `characters`."""
        self._detokenizer = Detokenizer(decode)
        self._stops = stops
        self._pieces: list[str] = []
        self._skip = characters
        self._unsent = self._take(self._stops.push(self._detokenizer.push(resume))) if resume else ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was reached."""
        return self._stops.reached

    @property
    def text(self) -> str:
        """The whole text so far, with what came before the resumption."""
        return "".join(self._pieces)

    def push(self, tokens: Sequence[int]) -> str:
        """Take new tokens, return the text to send."""
        unsent, self._unsent = self._unsent, ""
        return unsent + self._take(self._stops.push(self._detokenizer.push(tokens)))

    def finish(self) -> str:
        """Return the rest of the text to send; no more tokens follow."""
        unsent, self._unsent = self._unsent, ""
        rest = self._stops.push(self._detokenizer.flush())
        return unsent + self._take(rest + self._stops.flush())

    def _take(self, text: str) -> str:
        self._pieces.append(text)
        skipped, self._skip = text[self._skip :], max(0, self._skip - len(text))
        return skipped
