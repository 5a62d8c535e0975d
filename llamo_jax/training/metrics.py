"""Where a run's numbers go: metrics.jsonl, TensorBoard, and a line per logged step."""

import json
import os
import time
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from llamo_jax import distributed


class MetricsLog:
    """Appends one JSON object per logged step; on resuming at `step`, later ones of an earlier attempt are dropped.

    Of several processes one writes.
    """

    def __init__(self, folder: Path, step: int):
        self._writes = distributed.is_main()
        if not self._writes:
            return
        self._path = folder / "metrics.jsonl"
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            partial = self._path.with_name(".metrics.jsonl.partial")
            partial.write_text("".join(line + "\n" for line in kept))
            os.replace(partial, self._path)
        self._file = self._path.open("a")
        self._tensorboard = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line in metrics.jsonl and one point per number in TensorBoard."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both."""
        if not self._writes:
            return
        self._file.close()
        self._tensorboard.close()


class Progress:
    """Speed and remaining time between logged steps; time spent outside training is not counted."""

    def __init__(self, step: int, steps: int):
        self._steps = steps
        self._last_step = step
        self._last_time = time.perf_counter()

    def pause(self) -> "Progress":
        """`with progress.pause():` excludes what happens inside, such as an evaluation."""
        return self

    def __enter__(self) -> None:
        self._paused = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._last_time += time.perf_counter() - self._paused

    def measure(self, step: int, tokens: int) -> tuple[float, str]:
        """Tokens per second since the last call, and the time left at this speed as h:mm:ss."""
        now = time.perf_counter()
        seconds = max(now - self._last_time, 1e-9)
        left = round(seconds / max(step - self._last_step, 1) * (self._steps - step))
        self._last_step, self._last_time = step, now
        return tokens / seconds, f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # half a line, from a process that was killed
