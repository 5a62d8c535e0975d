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

    So does a device without enough memory, and an argument that is not valid Unicode, which no later message could
    show; a reader of the output that has gone away (`| head`) ends it silently.
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
            except RuntimeError as error:  # as jax reports what fails on devices
                if (reason := out_of_memory(error)) is None:
                    raise
                sys.exit(f"{name}: {reason}; ask for fewer rows or tokens at a time, or use more devices")
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
                sys.exit(1)

        return wrapped

    return decorate


def out_of_memory(error: Exception) -> str | None:
    """One line about what a device had no memory for; None if it is another error of a computation.

    >>> out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."))
    'a device ran out of memory: Out of memory allocating 8 bytes'
    """
    _, exhausted, reason = str(error).partition("RESOURCE_EXHAUSTED: ")
    return f"a device ran out of memory: {reason.splitlines()[0].rstrip('.')}" if exhausted else None


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
