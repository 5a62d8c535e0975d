"""The training loop of both stages, from top to bottom."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline.batch import Batch
from data_pipeline.loader import BatchLoader
from llamo_jax import sharding
from llamo_jax.config import Config, ConfigError
from llamo_jax.models.definition import ModelDefinition, initial_arrays
from llamo_jax.parameters import Arrays
from llamo_jax.training import checkpoints, metrics
from llamo_jax.training.program import Program, make_program
from llamo_jax.training.step import TrainState
from llamo_jax.training.trainable import learning_rate_schedule

Sampler = Callable[[ModelDefinition, Arrays], list[dict]]
"""Answers of the model with these arrays, as JSON objects for samples.jsonl."""


class Data(NamedTuple):
    """What a run reads."""

    train: BatchLoader
    validation: BatchLoader | None


def train(config: Config, workdir: Path, data: Data, mesh: Mesh, sampler: Sampler | None = None) -> TrainState:
    """Trains to `config.train.steps`, continuing from the newest checkpoint in `workdir` if there is one.

    Weights come from, in this order: (1) the newest checkpoint in `workdir`; (2) for what it does not hold, and for a
    new run, the run `config.init_from`; (3) fresh initial values.
    """
    start = time.perf_counter()
    settings = config.train
    program = make_program(config, mesh)
    print(program.summary())
    schedule = learning_rate_schedule(settings)
    shards = sharding.local_shards(mesh)

    with checkpoints.Checkpoints(workdir, keep=settings.keep_checkpoints) as saved:
        state = saved.restore(program.state)
        restored = set() if state is None else {*state.trained, *state.statistics}
        arrays = _starting_weights(config, workdir, program, restored)
        frozen = {name: arrays.pop(name) for name in program.frozen}
        state = state or program.initial_state(arrays)
        first_step = step = int(state.step)
        log = metrics.MetricsLog(workdir, step)
        samples = _Samples(workdir, sampler, program.definition)

        def evaluate(state: TrainState) -> dict[str, float]:
            if data.validation is None:
                return {}
            batches = data.validation.evaluation_batches(shards)
            sums = [program.eval_step(state, frozen, sharding.put_batch(batch, mesh)) for batch in batches]
            total, count = (sum(float(x) for x in column) for column in zip(*sums, strict=True))
            return {"validation_loss": total / count}

        if step == 0:
            print("".join(f"before training  validation {loss:.4f}" for loss in evaluate(state).values()))
            samples.write(0, state, frozen)
        else:
            print(f"continuing from step {step} of {settings.steps} in {workdir}")

        first_batch = step * settings.accumulate
        stream = data.train.training_batches(config.seed, first_batch, shards)
        accumulated = _accumulated(stream, settings.accumulate)
        progress = metrics.Progress(step, settings.steps)
        pending: list[tuple[dict, int]] = []
        for step, batches in zip(range(first_step + 1, settings.steps + 1), accumulated, strict=False):
            state, values = program.train_step(state, frozen, sharding.put_batch(batches, mesh, leading=1))
            pending.append((values, int(np.count_nonzero(batches.segments))))
            last = step == settings.steps
            if step % settings.log_every == 0 or last:
                line = _summary(pending) | {"learning_rate": float(schedule(step - 1))}
                if not np.isfinite(line["loss"]):
                    raise FloatingPointError(
                        f"the loss is {line['loss']} at step {step}; lower config.train.learning_rate"
                    )
                line["tokens_per_second"], left = progress.measure(step, sum(tokens for _, tokens in pending))
                pending = []
                with progress.pause():
                    if step % settings.eval_every == 0 or last:
                        line |= evaluate(state)
                    log.write(step, line)
                    print(_readable(step, settings.steps, line, left), flush=True)
            if step % settings.checkpoint_every == 0 or last:
                with progress.pause():
                    saved.save(state)
        if step > first_step:
            samples.write(step, state, frozen)
        log.close()
    print(f"done after {time.perf_counter() - start:.0f} s; everything is in {workdir}")
    return state


def _starting_weights(config: Config, workdir: Path, program: Program, have: set[str]) -> Arrays:
    """The arrays of a program that are not in `have`: from `init_from`, the rest freshly drawn.

    Raises ConfigError if a frozen parameter would be freshly drawn: it would stay random.
    """
    abstract = program.arrays()
    arrays: Arrays = {}
    if config.init_from:
        base = checkpoints.read_base(workdir)
        if base is None:
            # everything the base run has, so that the digest covers all that this run may need of it
            arrays, step = checkpoints.load_weights(config.init_from, abstract)
            base = checkpoints.Base(Path(config.init_from).resolve(), step, checkpoints.digest(arrays))
            checkpoints.write_base(workdir, base)
        else:
            arrays, _ = checkpoints.load_weights_at(base, abstract)
        print(f"weights from {base.folder.name} at step {base.step}")
    wanted = {name: spec for name, spec in abstract.items() if name not in have and name not in arrays}
    random = [name for name in wanted if name in program.frozen]
    if random:
        raise ConfigError(
            f"{len(random)} frozen parameters would stay random, such as {random[0]}; "
            "set config.init_from to a run that has them, or train them (config.train.trainable)"
        )
    fresh = initial_arrays(config.model, wanted, config.seed) if wanted else {}
    return {name: array for name, array in {**arrays, **fresh}.items() if name not in have}


def _accumulated(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Groups of `count` batches, stacked along a new leading axis."""
    while group := list(itertools.islice(batches, count)):
        yield jax.tree.map(lambda *arrays: np.stack(arrays), *group)


def _summary(pending: list[tuple[dict, int]]) -> dict[str, float]:
    """Means over the steps since the last line; losses weighted by their targets."""
    values = [jax.device_get(values) for values, _ in pending]
    targets = sum(int(v["targets"]) for v in values)
    return {
        "loss": float(sum(v["loss"] * v["targets"] for v in values) / max(targets, 1)),
        "grad_norm": float(np.mean([v["grad_norm"] for v in values])),
        "target_tokens": targets,
    }


def _readable(step: int, steps: int, line: dict[str, float], left: str) -> str:
    validation = f"  validation {line['validation_loss']:.4f}" if "validation_loss" in line else ""
    speed = f"{line['tokens_per_second']:,.0f} tokens/s"
    return f"step {step:>6}/{steps}  loss {line['loss']:.4f}{validation}  {speed}  {left} left"


class _Samples:
    """Answers before and after training, appended to samples.jsonl."""

    def __init__(self, workdir: Path, sampler: Sampler | None, definition: ModelDefinition):
        self._path = workdir / "samples.jsonl"
        self._sampler = sampler
        self._definition = definition

    def write(self, step: int, state: TrainState, frozen: Arrays) -> None:
        """Answers of the model as it is now."""
        if self._sampler is None:
            return
        answers = self._sampler(self._definition, {**frozen, **state.trained, **state.statistics})
        with self._path.open("a") as file:
            for answer in answers:
                file.write(json.dumps({"step": step, **answer}) + "\n")
        for answer in answers:
            print(f"  {answer['smiles']}  {answer['question']}\n    {answer['answer']}", flush=True)
