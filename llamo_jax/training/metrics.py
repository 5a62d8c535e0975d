"""Where a run's numbers go: metrics.jsonl, sinks such as TensorBoard, and a line per logged step."""

import contextlib
import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
from etils import epath
from jax.sharding import Mesh

from data_pipeline import storage
from data_pipeline.batch import BatchShape
from llamo_jax import distributed
from llamo_jax.config import ConfigError, to_dict
from llamo_jax.training.config import Config
from llamo_jax.training.flops import graph_side_flops, needed_flops, peak_flops


class Sink(Protocol):
    """One more place for numbers; made by an entry of SINKS from the run's folder, id, configuration and first step."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """The numbers of a logged step."""

    def close(self) -> None:
        """Everything is written; nothing follows."""


class TensorBoard:
    """Event files in the workdir, by tensorboardX; not on object stores, to which it does not write."""

    def __init__(self, folder: epath.Path, run_id: str, config: Config, step: int):
        del run_id, config
        self._writer = None
        if not storage.is_remote(folder):
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(os.fspath(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """See Sink."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See Sink."""
        if self._writer is not None:
            self._writer.close()


class Tracker:
    """Weights & Biases, or trackio, which has the same interface; project "llamo_jax", the run named by its folder.

    A run that continues goes on in the same one there. Their own variables (WANDB_MODE, TRACKIO_SPACE_ID …) decide
    where that is.
    """

    def __init__(self, library: str, folder: epath.Path, run_id: str, config: Config, step: int):
        del step
        name = f"{folder.name}-{run_id[:8]}"
        identity = {"id": run_id} if library == "wandb" else {}
        self._run = importlib.import_module(library).init(
            project="llamo_jax", name=name, config=to_dict(config), resume="allow", **identity
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """See Sink."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """See Sink."""
        self._run.finish()


SINKS: dict[str, Callable[[epath.Path, str, Config, int], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda *run: Tracker("wandb", *run),
    "trackio": lambda *run: Tracker("trackio", *run),
}
"""By the names of `config.train.sinks`."""


def check_sinks(names: Sequence[str]) -> None:
    """Raises ConfigError if a sink's library is not installed."""
    for name in names:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise ConfigError(f'config.train.sinks={name} needs its library: pip install "llamo_jax[{name}]"')


class MetricsLog:
    """Appends one JSON object per logged step; on resuming at `step`, later ones of an earlier attempt are dropped.

    Of several processes one writes.
    """

    def __init__(self, folder: epath.Path, run_id: str, config: Config, step: int):
        self._writes = distributed.is_main()
        if not self._writes:
            return
        path = folder / "metrics.jsonl"
        lines = storage.read_json_lines(path)
        kept = [line for line in lines if isinstance(line.get("step"), int) and line["step"] <= step]
        if len(kept) < len(lines):
            storage.write_json_lines(path, kept)
        self._lines = storage.LineWriter(path)
        self._sinks = [SINKS[name](folder, run_id, config, step) for name in config.train.sinks]

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line in metrics.jsonl, and the numbers to every sink."""
        if not self._writes:
            return
        self._lines.write({"step": step, **values})
        for sink in self._sinks:
            sink.write(step, values)

    def close(self) -> None:
        """Flushes and closes all."""
        if not self._writes:
            return
        self._lines.close()
        for sink in self._sinks:
            sink.close()


class Validations:
    """The lowest validation loss so far, its step, and how many validations in a row came after it.

    of earlier starts: from the lines of metrics.jsonl up to the step at which a run continues.
    """

    def __init__(self, folder: epath.Path, step: int):
        self.best, self.best_step, self.since = math.inf, 0, 0
        if distributed.is_main():
            for line in storage.read_json_lines(folder / "metrics.jsonl"):
                loss, at = line.get("validation_loss"), line.get("step")
                if isinstance(loss, int | float) and isinstance(at, int) and at <= step:
                    self.add(at, float(loss))
        best, at, since = distributed.from_main([self.best, self.best_step, self.since])
        self.best, self.best_step, self.since = best, int(at), int(since)

    def add(self, step: int, loss: float) -> bool:
        """Notes a validation; whether its loss is the lowest."""
        if loss < self.best:
            self.best, self.best_step, self.since = loss, step, 0
            return True
        self.since += 1
        return False

    def ended(self, patience: int) -> bool:
        """Whether as many validations as `patience` (0: any number) have come without a lower loss."""
        return 0 < patience <= self.since


class Progress:
    """Speed between logged steps, without what happens in pauses, and the time left by the clock, with it.

    Both begin after the first step, which is when everything is compiled. unlogged: steps up to `step` whose tokens the
    next line counts as well, as a run has that was stopped between two lines.
    """

    def __init__(self, step: int, steps: int, unlogged: int = 0):
        self._steps = steps
        self._waited = 0.0
        self._first = self._last = step
        self._logged = step - unlogged
        self._began = self._resumed = time.perf_counter()

    def compiled(self, step: int, done: Any) -> None:
        """Counts from here, as soon as `done`, a result of the first step, is there."""
        jax.block_until_ready(done)
        self._first = self._last = step
        self._began = self._resumed = time.perf_counter()
        self._waited = 0.0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes what happens inside, such as an evaluation, from the speed."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._resumed += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside is waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def measure(self, step: int, tokens: int) -> tuple[dict[str, float], str]:
        """Numbers of a logged step, `tokens` after the one before, and the time left as h:mm:ss.

        tokens_per_second; step_seconds, of which input_wait_seconds go by before a batch is there. The very first step
        compiles: a line that follows it has none of them, and no time left is known.
        """
        now = time.perf_counter()
        counted = step - self._last
        if not counted:
            self._logged = step
            self._resumed = now
            return {}, "?"
        share = counted / (step - self._logged)  # of the tokens: those of the first step are not timed
        seconds = max(now - self._resumed, 1e-9)  # two lines within the clock's resolution
        found = {
            "tokens_per_second": tokens * share / seconds,
            "step_seconds": seconds / counted,
            "input_wait_seconds": self._waited / counted,
        }
        left = round((now - self._began) / (step - self._first) * (self._steps - step))
        self._last = self._logged = step
        self._resumed, self._waited = now, 0.0
        return found, f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


class Utilisation:
    """Of the devices: their arithmetic (MFU; Chowdhery et al., 2022, appendix B) and their memory."""

    def __init__(self, config: Config, shape: BatchShape, trained: Sequence[str], mesh: Mesh):
        peak = peak_flops(mesh.devices.flat[0])
        self._peak = None if peak is None else peak * mesh.size
        self._positions = shape.rows * shape.row.tokens
        if config.train.objective == "words":  # no layer of the decoder is computed
            self._parts = [graph_side_flops(config.model, shape, trained).total()] * 2
        else:
            self._parts = [needed_flops(config.model, shape, trained, share) for share in (0.0, 1.0)]
        self._batches = config.train.accumulate

    def measure(self, step_seconds: float, targets: float) -> dict[str, float]:
        """mfu, of the data sheet's bfloat16 peak, where one is known; peak_bytes of a device, where it tells.

        targets: of a step.
        """
        found: dict[str, float] = {}
        if self._peak is not None:
            rest, whole = self._parts
            needed = rest * self._batches + (whole - rest) * targets / self._positions
            found["mfu"] = needed / step_seconds / self._peak
        memory = [device.memory_stats() for device in jax.local_devices()]
        if all(memory):
            found["peak_bytes"] = max(stats["peak_bytes_in_use"] for stats in memory if stats)
        return found
