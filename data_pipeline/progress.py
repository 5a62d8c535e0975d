"""How far long work is: a bar where people watch a terminal, a line every half minute where the output is a file."""

import io
import sys
from typing import Any

from tqdm import tqdm

SECONDS = 30  # between two lines in a file


class _Lines(io.StringIO):
    """Standard error for tqdm, with an end of line behind what would be drawn over."""

    def write(self, text: str) -> int:
        if text.strip():
            sys.stderr.write(text.strip("\r\n") + "\n")
            sys.stderr.flush()
        return len(text)


def watched(*arguments: Any, **options: Any) -> Any:
    """As `tqdm`, of whose options `file`, `mininterval` and `disable=None` are decided here.

    What is over before the first half minute leaves no line in a file.
    """
    if options.pop("disable", None):
        return tqdm(*arguments, disable=True, **options)
    if sys.stderr.isatty():
        return tqdm(*arguments, **options)
    options["delay"] = max(SECONDS, options.get("delay", 0))
    return tqdm(*arguments, file=_Lines(), mininterval=SECONDS, maxinterval=SECONDS, **options)
