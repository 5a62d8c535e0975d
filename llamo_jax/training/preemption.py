"""Requests to stop: SIGTERM, as schedulers and clouds send it before they take a machine away, and Ctrl-C."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Listens for SIGTERM and Ctrl-C while it is entered; of several processes it is enough if one gets one.

    A second Ctrl-C raises KeyboardInterrupt: whoever presses it twice does not want to wait.
    """

    def __init__(self) -> None:
        self._received = False
        self._asked = 0
        self._reached = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            # Among several processes JAX listens for SIGTERM, and agrees with the others on the step where all stop.
            listened = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
            self._previous = {number: signal.signal(number, self._receive) for number in listened}
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous = {}

    def requested(self) -> bool:
        """Whether to stop now; all processes ask equally often, and get the same answer at the same time."""
        self._asked += 1
        if jax.process_count() == 1:
            return self._received
        # JAX says so at one call alone: the one after the latest that any process had come to
        self._reached = multihost_utils.reached_preemption_sync_point(self._asked) or self._reached
        return self._reached

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, _at_once)
            # not print: a signal may come while another print is at work, which must not be entered twice
            os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once, without saving\n")
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
        self._received = True


def _at_once(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; a moment later where Python would only print it and go on, as in JAX's gc callback."""
    if frame is not None and frame.f_code.co_name.endswith("gc_callback"):
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        return
    raise KeyboardInterrupt
