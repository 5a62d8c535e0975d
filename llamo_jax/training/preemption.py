"""Requests to stop: SIGTERM, as schedulers and clouds send it some seconds before they take a machine away."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Listens for SIGTERM while it is entered; of several processes it is enough if one of them gets it."""

    def __init__(self) -> None:
        self._received = False
        self._asked = 0
        self._reached = False
        self._previous: Any = None

    def __enter__(self) -> "StopRequest":
        # Among several processes JAX listens itself, and agrees with the others on the step after which all stop.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def requested(self) -> bool:
        """Whether to stop now; all processes ask equally often, and get the same answer at the same time."""
        self._asked += 1
        if jax.process_count() == 1:
            return self._received
        # JAX says so at one call alone: the one after the latest that any process had come to
        self._reached = multihost_utils.reached_preemption_sync_point(self._asked) or self._reached
        return self._reached

    def _receive(self, _signal: int, _frame: FrameType | None) -> None:
        self._received = True
