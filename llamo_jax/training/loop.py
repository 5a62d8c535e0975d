"""The training loop of both stages, from top to bottom."""

import functools
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from data_pipeline import storage
from data_pipeline.batch import Batch, with_other_graphs
from data_pipeline.loader import BatchLoader
from data_pipeline.records import Record
from llamo_jax import checksums, distributed, sharding
from llamo_jax.config import ConfigError
from llamo_jax.models.definition import ModelDefinition, initial_arrays
from llamo_jax.parameters import Arrays
from llamo_jax.training import checkpoints, metrics
from llamo_jax.training.config import Config
from llamo_jax.training.preemption import StopRequest
from llamo_jax.training.program import Program
from llamo_jax.training.step import TrainState
from llamo_jax.training.trainable import learning_rate_schedule, updates
from llamo_jax.training.workdir import BEST, Base, CheckpointError, at, read_base, write_base

Sampler = Callable[[ModelDefinition, Arrays], list[dict]]
"""Answers of the model with these arrays, as JSON objects for samples.jsonl."""


class Data(NamedTuple):
    """What a run reads."""

    train: BatchLoader
    validation: BatchLoader | None
    samples: Sequence[Record] = ()
    """Validation rows whose answers are shown."""


def train(
    config: Config,
    workdir: epath.Path,
    run_id: str,
    program: Program,
    data: Data,
    mesh: Mesh,
    sampler: Sampler | None = None,
) -> TrainState:
    """Trains to `config.train.steps`, continuing from the newest checkpoint in `workdir` if there is one.

    Ends before that when validations have not become better for long (config.train.early_stopping). Weights come from,
    in this order: (1) the newest checkpoint in `workdir`; (2) for what it does not hold, and for a
    new run, the run `config.init_from`; (3) fresh initial values. A request to stop (see preemption) ends it early,
    after a checkpoint. Raises FloatingPointError after too many steps whose loss is not finite, and CheckpointError
    if the last checkpoint could not be written.
    """
    settings = config.train
    with (
        jax.set_mesh(mesh),
        distributed.paced(settings.stall_seconds or math.inf),
        StopRequest() as stop,
        checkpoints.Checkpoints(
            workdir,
            run_id,
            keep=settings.keep_checkpoints,
            keep_best=settings.keep_best,
            on_save_failure=settings.on_save_failure,
        ) as saved,
    ):
        start = time.perf_counter()
        distributed.log(program.summary())
        shards = sharding.local_shards(mesh)
        # Where the weights come from, in this order: (1) this run's newest checkpoint that is whole;
        state = saved.restore(program.state)
        restored = set() if state is None else {*state.trained, *state.statistics}
        # (2) for what it does not hold (all that is frozen, and everything at the first start) the run `init_from`,
        # (3) and fresh values for the rest. What is restored already is loaded from nowhere else.
        distributed.moved(0)  # large checkpoints and bases take minutes each, and are no stall
        arrays = _starting_weights(config, workdir, program, restored)
        distributed.moved(0)
        frozen = {name: arrays.pop(name) for name in program.frozen}
        state = state or program.initial_state(arrays)
        first_step = step = int(state.step)
        schedule = learning_rate_schedule(settings)
        log = metrics.MetricsLog(workdir, run_id, config, step)
        samples = _Samples(workdir, sampler, program.definition, step)
        validations = metrics.Validations(workdir, step)

        def evaluate(state: TrainState, *, graph_use: bool = False, last: bool = False) -> dict[str, float]:
            if data.validation is None:
                return {}
            sums: dict[str, list] = {"true": [], "other": []}
            for batch in data.validation.evaluation_batches(shards, settings.eval_batches):
                if stop.requested() and not last:  # the last one would never be made up for
                    return {}
                shown = {"true": batch} | ({"other": with_other_graphs(batch)} if graph_use else {})
                for graphs, each in shown.items():
                    # device values: the loop over batches does not wait for each result
                    sums[graphs].append(program.eval_step(state, frozen, sharding.put_batch(each, mesh)))
                    distributed.moved(step)
            loss = _mean(sums["true"], settings.objective)
            used = {"graph_use": _mean(sums["other"], settings.objective) - loss} if graph_use else {}
            return {"validation_loss": loss} | used

        epochs = functools.partial(data.train.epochs, config.seed)
        distributed.log(f"{settings.steps:,} steps, {epochs(settings.steps * settings.accumulate):.3g} times the data")
        if step == 0:
            distributed.log("compiling, which is waited for once …")
            distributed.log("".join(f"before training  validation {loss:.4f}" for loss in evaluate(state).values()))
        else:
            distributed.log(f"continuing from step {step} of {settings.steps} in {workdir}")
            if step == settings.steps:  # it was stopped between its last checkpoint and its end
                samples.write(step, state, frozen, unless_there=True)

        # the position in the data is the number of batches seen, which follows from the step: nothing else is stored
        stream = data.train.training_batches(config.seed, step * settings.accumulate, shards)
        accumulated = _accumulated(stream, settings.accumulate)
        progress = metrics.Progress(step, settings.steps, int(state.log["steps"] + state.log["skipped"]))
        utilisation = metrics.Utilisation(config, data.train.shape, list(program.state.trained), mesh)
        profile = _Profile(workdir, settings.profile_steps)
        guard = _NonFiniteGuard(config, workdir, data.train)
        while step < settings.steps and not validations.ended(settings.early_stopping):
            with progress.waiting():
                batches = next(accumulated)
            step += 1
            profile.before(step)
            state, values = program.train_step(state, frozen, sharding.put_batch(batches, mesh, leading=1))
            guard.check(step, values["skipped_in_a_row"])
            distributed.moved(step)
            profile.after(step, values)
            if step == first_step + 1:
                progress.compiled(step, values)
            last = step == settings.steps
            # asked at every step, since all processes must agree on the one after which they stop
            stopping = stop.requested()
            validated = best = None
            if step % settings.log_every == 0 or last:
                line = _line(state.log) | {"learning_rate": float(schedule(max(0, updates(state.optimizer) - 1)))}
                speed, left = progress.measure(step, line.pop("tokens"))
                targets = line["target_tokens"] / (step % settings.log_every or settings.log_every)
                line |= speed | (utilisation.measure(speed["step_seconds"], targets) if speed else {})
                line["epoch"] = epochs(step * settings.accumulate)
                state = program.logged(state)  # before a checkpoint of this step: it must not count the line again
                with progress.pause():
                    if step % settings.eval_every == 0 or last:
                        # at the first validation that is as late as the next multiple
                        every, before = settings.graph_use_every, max(0, step - settings.eval_every)
                        due = every > 0 and (last or step // every > before // every)
                        line |= evaluate(state, graph_use=due, last=last)
                        validated = line.get("validation_loss")
                    log.write(step, line)
                    distributed.log(_readable(step, settings.steps, line, left))
                    if validated is not None:
                        best = validations.add(step, validated)
                    if (step % settings.eval_every == 0 or last) and not stop.requested():
                        samples.write(step, state, frozen)
            stopping = stopping or stop.requested()  # during the evaluation
            ended = validations.ended(settings.early_stopping)
            if step % settings.checkpoint_every == 0 or last or stopping or ended or (best and settings.keep_best):
                with progress.pause():
                    saved.save(state, validated)
                distributed.moved(step)
            if stopping and not last:
                saved.finish()
                distributed.log(f"stopped after step {step} of {settings.steps}, as requested; {saved.on_disk()}")
                break
        profile.finish()
        guard.finish()
        log.close()
        saved.finish()
        if saved.failed is not None:  # on_save_failure=continue: the run went on, but its end is not on the disk
            raise CheckpointError(f"step {step} of {settings.steps} was reached, but not saved; {saved.on_disk()}")
        kept = saved.best()
    if validations.ended(settings.early_stopping):
        distributed.log(
            f"ended after step {step} of {settings.steps}: {validations.since} validations without a lower loss than "
            f"{validations.best:.4f}, of step {validations.best_step} (config.train.early_stopping)"
        )
    if step == settings.steps or validations.ended(settings.early_stopping):
        distributed.log(f"done after {time.perf_counter() - start:.0f} s; everything is in {workdir}")
        if kept is not None and kept[0] != step:
            distributed.log(f"the lowest validation loss, {kept[1]:.4f}, is that of {workdir / 'checkpoints' / BEST}")
    return state


def _starting_weights(config: Config, workdir: epath.Path, program: Program, have: set[str]) -> Arrays:
    """The arrays of a program that are not in `have`: from `init_from`, the rest freshly drawn.

    Raises ConfigError if a frozen parameter would be freshly drawn: it would stay random.
    """
    abstract = program.arrays()
    arrays: Arrays = {}
    base = read_base(workdir) if config.init_from else None
    if config.init_from:
        if base is None:
            # everything the base run has, so that the digest covers all that this run may need of it
            loaded = checkpoints.load_weights(config.init_from, abstract, config.model.quantize)
            origin, which = at(storage.absolute(config.init_from))
            origin = origin / "checkpoints" / str(loaded.step) if which else origin
            base = Base(origin, loaded.step, loaded.digest(), checksums.VERSION)
        else:
            loaded = checkpoints.load_weights_at(base, abstract, config.model.quantize)
        arrays = loaded.arrays
        distributed.log(f"weights from {base.folder.name} at step {base.step}")
    wanted = {name: spec for name, spec in abstract.items() if name not in have and name not in arrays}
    random = [name for name in wanted if name in program.frozen]
    if random:
        raise ConfigError(
            f"{len(random)} frozen parameters would stay random, such as {random[0]}; "
            "set config.init_from to a run that has them, or train them (config.train.trainable)"
        )
    if base is not None:  # only now: a base that does not do must not stay with the run
        distributed.wait("weights loaded")  # all processes have looked whether there is one
        write_base(workdir, base)
    fresh = initial_arrays(config.model, wanted, config.seed) if wanted else {}
    return {name: array for name, array in {**arrays, **fresh}.items() if name not in have}


def _accumulated(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Groups of `count` batches, stacked along a new leading axis."""
    while group := list(itertools.islice(batches, count)):
        yield jax.tree.map(lambda *arrays: np.stack(arrays), *group)


def _mean(sums: Sequence[tuple[jax.Array, jax.Array]], objective: str = "answers") -> float:
    """The mean over all targets, from the sums and counts of batches; raises ConfigError if there are none."""
    total, count = (sum(float(x) for x in column) for column in zip(*sums, strict=True))
    if not count:
        raise ConfigError(
            f"config.train.objective={objective} has nothing to learn in the validation batches; of words, it asks in "
            "answers about one molecule whose graph is shown: see config.data.source, config.prompt.show_graph"
        )
    return total / count


def _line(log: dict[str, jax.Array]) -> dict[str, Any]:
    """What a line of metrics.jsonl says of the steps since the last one; losses are means over targets.

    Without `loss` and `grad_norm` if all of them were skipped: a loss of 0 would be the best of all.
    """
    sums = jax.device_get(log)
    means = {
        "loss": float(sums["loss"] / max(sums["targets"], 1)),
        "grad_norm": float(sums["grad_norm"] / max(sums["steps"], 1)),
    }
    line = (means if sums["steps"] else {}) | {"target_tokens": int(sums["targets"]), "tokens": int(sums["tokens"])}
    return line | ({"skipped_steps": int(sums["skipped"])} if sums["skipped"] else {})


def _readable(step: int, steps: int, line: dict[str, float], left: str) -> str:
    validation = f"  validation {line['validation_loss']:.4f}" if "validation_loss" in line else ""
    if "graph_use" in line:
        validation += f" ({line['graph_use']:+.4f} with other graphs)"
    speed = f"  {line['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in line else ""
    skipped = f"  {line['skipped_steps']} steps skipped (loss not finite)" if "skipped_steps" in line else ""
    loss = f"  loss {line['loss']:.4f}" if "loss" in line else ""
    where = f"step {step:>6}/{steps}  epoch {line['epoch']:.2f}"
    return f"{where}{loss}{validation}{skipped}{speed}  {left} left"


class _NonFiniteGuard:
    """Stops a run whose loss stays infinite or undefined, and says which data it was looking at.

    A step's result is looked at two steps later, so that the devices always have work.
    """

    _LAG = 2  # steps in flight: reading a result at once would leave the devices idle until the next is sent

    def __init__(self, config: Config, workdir: epath.Path, loader: BatchLoader):
        self._config = config
        self._path = workdir / "nonfinite.json"
        self._loader = loader
        self._results: deque[tuple[int, jax.Array]] = deque()

    def check(self, step: int, skipped_in_a_row: jax.Array) -> None:
        """Takes note of how many steps in a row were skipped up to this one; raises FloatingPointError."""
        self._results.append((step, skipped_in_a_row))
        if len(self._results) > self._LAG:
            self._look(*self._results.popleft())

    def finish(self) -> None:
        """Looks at what is left; raises as `check`."""
        while self._results:
            self._look(*self._results.popleft())

    def _look(self, step: int, skipped_in_a_row: jax.Array) -> None:
        train = self._config.train
        count = int(skipped_in_a_row)
        if count < train.max_nonfinite_steps:
            return
        steps = [
            {
                "step": skipped,
                "batches": [
                    {"batch": batch, "rows": self._loader.training_rows(self._config.seed, batch)}
                    for batch in range((skipped - 1) * train.accumulate, skipped * train.accumulate)
                ],
            }
            for skipped in range(step - count + 1, step + 1)
        ]
        if distributed.is_main():
            content = {"source": self._config.data.source, "split": "train", "steps": steps}
            storage.write_json(self._path, content)
        raise FloatingPointError(
            f"the loss was not finite in {count} steps in a row, up to step {step}; what they read is in {self._path} "
            "(rows of [data set, conversations]); lower config.train.learning_rate or look at that data"
        )


class _Profile:
    """A trace of some steps, for XProf or Perfetto, in the folder "profile" of the workdir."""

    def __init__(self, workdir: epath.Path, steps: tuple[int, ...]):
        self._folder = workdir / "profile"
        self._first, self._last = steps or (0, 0)
        self._runs = False

    def before(self, step: int) -> None:
        """Starts the trace before its first step, or where a run continues within."""
        if not self._runs and self._first <= step <= self._last:
            jax.profiler.start_trace(os.fspath(self._folder))
            self._runs = True

    def after(self, step: int, values: Any) -> None:
        """Ends it when the results of its last step are there."""
        if self._runs and step == self._last:
            jax.block_until_ready(values)
            self.finish()

    def finish(self) -> None:
        """Writes what there is."""
        if self._runs:
            jax.profiler.stop_trace()
            self._runs = False
            distributed.log(f"profile of steps {self._first} to {self._last} in {self._folder}")


class _Samples:
    """Answers at every validation, appended to samples.jsonl; later ones of an earlier attempt are dropped."""

    def __init__(self, workdir: epath.Path, sampler: Sampler | None, definition: ModelDefinition, step: int):
        self._path = workdir / "samples.jsonl"
        self._sampler = sampler
        self._definition = definition
        self._there = False
        if sampler is not None and distributed.is_main():
            lines = storage.read_json_lines(self._path)
            kept = [line for line in lines if isinstance(line.get("step"), int) and line["step"] <= step]
            if len(kept) < len(lines):
                storage.write_json_lines(self._path, kept)
            self._there = any(line["step"] == step for line in kept)

    def write(self, step: int, state: TrainState, frozen: Arrays, *, unless_there: bool = False) -> None:
        """Answers of the model as it is now; unless_there: only if the step at which a run continues has none."""
        if self._sampler is None or (unless_there and not distributed.all_agree(not self._there)):
            return
        answers = self._sampler(self._definition, {**frozen, **state.trained, **state.statistics})
        distributed.moved(step)
        if not distributed.is_main():
            return
        with storage.LineWriter(self._path) as file:
            for answer in answers:
                file.write({"step": step, **answer})
        for answer in answers:
            expected = f"\n    expected: {answer['target']}" if "target" in answer else ""
            shown = f"{', '.join(answer['smiles'])}  {answer['question']}"
            print(f"  {shown}\n    answered: {answer['answer']}{expected}", flush=True)
