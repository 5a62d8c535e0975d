"""From tokens that come one after the other to text that can be shown."""

from collections.abc import Callable, Sequence


class TextStream:
    """The text of one answer, in pieces that never have to be taken back.

    decode: the text of an answer's tokens, from the first on. stop: texts that end the answer where they begin; what
    may be the beginning of one is held back until it is known.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()):
        self._decode = decode
        self._stop = tuple(stop)
        self._shown = 0
        self.stopped = False

    def shown(self, tokens: Sequence[int], *, whole: bool) -> str:
        """What can be shown beyond what was shown before, of the answer's tokens so far; all of it if it is `whole`.

        After a text of `stop`, `stopped` is True and nothing is shown any more.
        """
        if self.stopped:
            return ""
        text = self._decode(tokens)
        ends = [place for each in self._stop if (place := text.find(each)) >= 0]
        if ends:
            self.stopped, end = True, min(ends)
        elif whole:
            end = len(text)
        elif text.endswith("\ufffd"):
            # a character may need several tokens: until it is whole, its beginning decodes as U+FFFD
            return ""
        else:
            end = len(text) - max((_overlap(text, each) for each in self._stop), default=0)
        piece = text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece


def _overlap(text: str, stop: str) -> int:
    """The longest beginning of `stop`, short of all of it, that `text` ends with.

    >>> _overlap("It is User", "User:")
    4
    """
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
