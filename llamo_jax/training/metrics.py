"""Where a run's numbers go: metrics.jsonl, TensorBoard, and a line per logged step."""

import os
import time
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from data_pipeline import storage
from llamo_jax import distributed


class MetricsLog:
    """Appends one JSON object per logged step; on resuming at `step`, later ones of an earlier attempt are dropped.

    Of several processes one writes. Without TensorBoard on object stores, which tensorboardX does not write to.
    """

    def __init__(self, folder: epath.Path, step: int):
        self._writes = distributed.is_main()
        if not self._writes:
            return
        path = folder / "metrics.jsonl"
        lines = storage.read_json_lines(path)
        kept = [line for line in lines if line["step"] <= step]
        if len(kept) < len(lines):
            storage.write_json_lines(path, kept)
        self._lines = storage.LineWriter(path)
        self._tensorboard = None
        if not storage.is_remote(folder):
            self._tensorboard = SummaryWriter(os.fspath(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line in metrics.jsonl and one point per number in TensorBoard."""
        if not self._writes:
            return
        self._lines.write({"step": step, **values})
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both."""
        if not self._writes:
            return
        self._lines.close()
        if self._tensorboard is not None:
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
        seconds = max(now - self._last_time, 1e-9)  # two lines within the clock's resolution
        left = round(seconds / max(step - self._last_step, 1) * (self._steps - step))
        self._last_step, self._last_time = step, now
        return tokens / seconds, f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
