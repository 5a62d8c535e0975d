"""Trains or evaluates a model, as its configuration says.

    python launch.py --config configs/stage1.py[:preset] [--workdir DIR] [--config.train.steps=N ...]
    python launch.py --config configs/evaluate.py --config.checkpoint=DIR --config.task=TASK --config.data=DIR_OR_FILE

Run the same command again to continue an interrupted run. Exit status: 0 done; 75 (EX_TEMPFAIL) stopped with a
checkpoint before the last step, as SIGTERM or Ctrl-C ask for; 130 a second Ctrl-C, or one outside of training; 1 else.
"""

import gc
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from absl import app, flags
from ml_collections import config_flags

from data_pipeline.command_line import out_of_memory, program
from data_pipeline.logs import quiet_libraries

if TYPE_CHECKING:
    from llamo_jax.training.config import Config

gc.disable()  # until all is imported, which is here to stay: to look through it again and again took 0.2 of 1.8 s

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/NAME.py[:preset]; fields with --config.FIELD=VALUE")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "the run's folder; default: runs/NAME-PRESET, or runs/evaluate-CHECKPOINT-TASK"
)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0, if there are several")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many processes there are", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "the number of this one, from 0", lower_bound=0)
flags.mark_flag_as_required("config")


_LESS_MEMORY = {
    "training": "config.model.remat=dots or full, a smaller config.model.loss_chunk, fewer or shorter rows "
    "(config.data.rows_per_device, rows, tokens_per_row; config.train.accumulate keeps a step's size), "
    "config.model.quantize, or more devices (config.mesh.fsdp)",
    "evaluation": "smaller config.decoding.num_beams, num_samples or max_new_tokens, or more devices (config.tensor)",
}
"""What needs less memory than what a run asked for."""


@program("launch.py", "run the same command again to continue")
def main(arguments: list[str]) -> None:
    """Runs the configuration that the flags describe."""
    if arguments[1:]:
        sys.exit(f"launch.py: unexpected arguments {arguments[1:]}; fields are set with --config.FIELD=VALUE")
    quiet_libraries()
    _check()
    # Imported after that, so that --help and a wrong flag, value or folder answer at once.
    from llamo_jax import distributed, runs

    gc.enable()
    try:
        distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        distributed.check_devices()
        with distributed.watched(_lost):
            done = (_evaluate if _is_evaluation() else _train)()
    except runs.UserError as error:
        _stop(str(error))
    except RuntimeError as error:  # as jax reports what fails on devices
        if (reason := out_of_memory(error)) is None:
            raise
        _stop(f"{reason}; what needs less: {_LESS_MEMORY['evaluation' if _is_evaluation() else 'training']}")
    _leave(0 if done else os.EX_TEMPFAIL)  # schedulers start again what has failed, and leave alone what has ended


def _check() -> None:
    """Ends the process if a value of the configuration is wrong, or a folder that it names, as far as files tell."""
    from data_pipeline.errors import DataError
    from llamo_jax.config import ConfigError, from_dict
    from llamo_jax.evaluation.config import EvaluationConfig
    from llamo_jax.training import workdir
    from llamo_jax.training.config import Config

    try:
        if _is_evaluation():
            from_dict(EvaluationConfig, _CONFIG.value.to_dict())
        else:
            config = from_dict(Config, _CONFIG.value.to_dict())
            workdir.check(_workdir(config), config)
    except (ConfigError, DataError, workdir.CheckpointError) as error:
        print(f"launch.py: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # to take down what was imported, and what nobody used, takes another 0.4 s


def _is_evaluation() -> bool:
    return _CONFIG.value.get("name") == "evaluate"


def _workdir(config: "Config") -> str:
    return _WORKDIR.value or f"runs/{config.name}-{config.preset}"


def _train() -> bool:
    """Whether the run has come to its end."""
    from data_pipeline import storage
    from llamo_jax import distributed, runs

    config = runs.read_config(_CONFIG.value)
    workdir = storage.as_path(_workdir(config))
    state = runs.train(config, workdir)
    if not runs.is_finished(config, workdir, state):
        distributed.log(f"to continue: {_command()}")
        return False
    return True


def _evaluate() -> bool:
    from data_pipeline import storage
    from llamo_jax import distributed, runs
    from llamo_jax.evaluation import run
    from llamo_jax.training.workdir import at

    runs.use_compilation_cache()
    config = run.read_config(_CONFIG.value)
    folder, which = at(Path(config.checkpoint).resolve())
    name = f"{folder.name}-{which}" if which else folder.name
    workdir = storage.as_path(_WORKDIR.value or f"runs/evaluate-{name}-{config.task}")
    metrics = run.evaluate(config, workdir)
    distributed.log(json.dumps({name: value for name, value in metrics.items() if not isinstance(value, dict | list)}))
    return True


def _command() -> str:
    return shlex.join(["python", *sys.argv])


def _leave(status: int) -> NoReturn:
    """Ends the process, when all is written, without waiting for threads that still build batches nobody will read."""
    import jax

    if jax.process_count() > 1:
        jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _lost(message: str) -> NoReturn:
    """Ends the process, from a thread, and without waiting for computations that may never end."""
    print(f"launch.py: {message}; start all processes again to continue: {_command()}", file=sys.stderr, flush=True)
    os._exit(1)


def _stop(message: str) -> NoReturn:
    """Exits with status 1; where there are other processes, without waiting for them, since they may never come."""
    import jax

    if jax.process_count() == 1:
        sys.exit(f"launch.py: {message}")
    print(f"launch.py: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _parse_flags(arguments: list[str]) -> list[str]:
    """Absl's flag parser, with one line instead of a traceback for a wrong preset or an unknown config key."""
    if {"-h", "--help", "-help", "--helpshort"} & set(arguments):
        _print_help()
        sys.exit(0)
    try:
        remaining = flags.FLAGS(arguments)
        if not hasattr(_CONFIG.value, "to_dict"):
            sys.exit(f"launch.py: {_CONFIG.value!r} is not a config file")
        return remaining
    except OSError as error:
        sys.exit(f"launch.py: --config: {str(error).strip().splitlines()[-1].strip()}")
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        while error.args and isinstance(error.args[0], Exception):
            error = error.args[0]
        reason = str(error.args[0] if error.args else error).strip().splitlines()
        if isinstance(error, KeyError):  # ml_collections: the key, and perhaps a suggestion
            sys.exit(f"launch.py: no such config key: {'. '.join(reason)}")
        sys.exit(f"launch.py: wrong flag: {reason[-1].removeprefix('ValueError: ')}")


def _print_help() -> None:
    """The module's docstring, the flags, and every field of the configuration with its legal values."""
    from llamo_jax.config import field_table
    from llamo_jax.evaluation.config import EvaluationConfig
    from llamo_jax.training.config import Config

    print(__doc__)
    for flag in sorted(flags.FLAGS.get_key_flags_for_module(sys.modules[__name__]), key=lambda flag: flag.name):
        print(f"  --{flag.name}: {flag.help}")
    for title, cls in (("stage0.py, stage1.py, stage2.py", Config), ("evaluate.py", EvaluationConfig)):
        print(f"\nFields of configs/{title}:")
        for row in field_table(cls):
            default = f", default {row.default}" if row.default else ""
            print(f"  --{row.path}=…  {row.legal}{default}\n      {row.description}")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
