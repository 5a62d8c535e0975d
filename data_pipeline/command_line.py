"""What all programs do alike when they are interrupted, or called with arguments that are no text."""

import argparse
import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the signal's number."""


def program(name: str, hint: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator of a program's main function: Ctrl-C ends it with one line, and `hint`, instead of a traceback.

    So does an argument that is not valid Unicode, which no later message could show; a reader of the output that has
    gone away (`| head`) ends it silently.
    """

    def decorate(main: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(main)
        def wrapped(*arguments: P.args, **options: P.kwargs) -> R:
            for argument in sys.argv[1:]:
                if any("\ud800" <= character <= "\udfff" for character in argument):
                    sys.exit(f"{name}: an argument is not valid {sys.getfilesystemencoding().upper()}: {argument!a}")
            try:
                return main(*arguments, **options)
            except KeyboardInterrupt:
                print(f"\n{name}: interrupted{'; ' * bool(hint)}{hint}", file=sys.stderr, flush=True)
                sys.exit(INTERRUPTED)
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
                sys.exit(1)

        return wrapped

    return decorate


def whole_numbers(text: str) -> tuple[int, ...]:
    """For argparse: rising whole numbers above 0, such as "1,2,5"; raises ArgumentTypeError for anything else.

    >>> whole_numbers("5,1,2")
    (1, 2, 5)
    """
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 1,2,5") from None
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{numbers[0]} is not above 0")
    return tuple(numbers)
