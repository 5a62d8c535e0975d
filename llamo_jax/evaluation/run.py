"""An evaluation from a configuration: answers to a split, their scores, and a page that shows both.

A workdir holds `evaluation.json` (what is evaluated and how), `answers.partial.jsonl` while answers are being made,
and at the end `predictions.jsonl`, `metrics.json`, `false_claims.jsonl` (descriptions only) and `report.html`.
"""

import importlib.metadata
import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.conversation import Message
from data_pipeline.embedded import prepare_embedded
from data_pipeline.errors import DataError
from data_pipeline.jobs import Runner
from data_pipeline.records import featurized
from llamo_jax import distributed
from llamo_jax.config import ConfigError, EvaluationConfig, from_dict, to_dict
from llamo_jax.evaluation.answers import classification_scores
from llamo_jax.evaluation.claims import checked_rows
from llamo_jax.evaluation.examples import Example, Examples, read_examples
from llamo_jax.evaluation.graph_use import likelihood_graph_use
from llamo_jax.evaluation.metric_tokenizer import load_metric_tokenizer
from llamo_jax.evaluation.predictions import write_predictions
from llamo_jax.evaluation.questions import group_questions
from llamo_jax.evaluation.report import write_report
from llamo_jax.evaluation.scores import YES_NO, kind_of, score
from llamo_jax.generation.generator import Generator
from llamo_jax.loading import load_generator
from llamo_jax.training.checkpoints import write_json

EMBEDDED = "embedded"
CONTEXTS = ("full", "questions_only")


def read_config(values: Mapping[str, Any]) -> EvaluationConfig:
    """The configuration of an evaluation from its config file; raises ConfigError or DataError."""
    config = from_dict(EvaluationConfig, values.to_dict() if hasattr(values, "to_dict") else values)
    kind_of(config.task)
    if config.context not in CONTEXTS:
        raise ConfigError(f"config.context: {config.context!r} is not one of {', '.join(CONTEXTS)}")
    if not config.checkpoint:
        raise ConfigError("config.checkpoint: give a run's workdir or a model folder")
    return config


def evaluate(config: EvaluationConfig, workdir: Path) -> dict[str, Any]:
    """Answers, scores, report; the content of metrics.json. Continues what an interrupted one has answered.

    Raises ConfigError if another evaluation is in `workdir`.
    """
    tokenizer = load_metric_tokenizer(config.metric_tokenizer)  # before anything takes time
    found = read_examples(_source(config), config.task, config.split, config.limit)
    generator, fingerprint = load_generator(config.checkpoint, decoding=config.decoding, tensor=config.tensor)
    about = {"model": fingerprint[:16], "data": found.fingerprint, "config": to_dict(config)}
    _claim(workdir, about)
    distributed.say(f"{len(found.examples):,} examples{_rejected(found)}; everything goes into {workdir}")
    rows = _answers(config, workdir, generator, found.examples)
    extra = _beyond(config, generator, found.examples)
    metrics: dict[str, Any] = {"task": config.task, "rows": len(rows)}
    if distributed.is_main():
        metrics |= score(config.task, rows, tokenizer) | extra
        metrics |= {
            "model": {"checkpoint": config.checkpoint, "fingerprint": about["model"]},
            "source": {"data": config.data, "split": config.split, "fingerprint": about["data"]},
            "rejected": found.rejected,
            "decoding": to_dict(config.decoding),
            "context": config.context,
            "git_commit": _git_commit(),
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "rdkit", "nltk", "rouge_score")},
        }
        write_predictions(workdir / "predictions.jsonl", rows)
        if "hallucination" in metrics:
            write_predictions(workdir / "false_claims.jsonl", checked_rows(rows))
        write_json(workdir / "metrics.json", metrics)
        write_report(workdir / "report.html", config.task, metrics, rows)
        _partial(workdir).unlink(missing_ok=True)
    distributed.wait("evaluated")
    return metrics


def _source(config: EvaluationConfig) -> Path:
    if config.data != EMBEDDED:
        return Path(config.data)
    folder = prepare_embedded(config.cache_dir, Runner(os.cpu_count() or 1)) / config.task
    if not folder.is_dir():
        raise ConfigError(
            f"config.task: the embedded corpus has no task {config.task!r}; it has description and instruction"
        )
    return folder


def _claim(workdir: Path, about: dict[str, Any]) -> None:
    """Makes the folder, or checks that the same evaluation was begun there."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot create the workdir {workdir}: {error.strerror}") from None
    path = workdir / "evaluation.json"
    about = json.loads(json.dumps(about))
    if path.is_file():
        there = json.loads(path.read_text())
        differ = [key for key in ("model", "data") if there.get(key) != about[key]]
        differ += [f"config.{key}" for key, value in about["config"].items() if there["config"].get(key) != value]
        if differ:
            raise ConfigError(
                f"{workdir} holds another evaluation ({', '.join(differ)} differ); choose another --workdir"
            )
    elif any(workdir.iterdir()):
        raise ConfigError(f"{workdir} is not empty and holds no evaluation; choose another --workdir")
    distributed.wait("workdir looked at")
    write_json(path, about)


def _partial(workdir: Path) -> Path:
    return workdir / "answers.partial.jsonl"


def _answers(
    config: EvaluationConfig, workdir: Path, generator: Generator, examples: Sequence[Example]
) -> list[dict[str, Any]]:
    """One row for each example, in their order; rows that an interrupted evaluation has made are read."""
    done = _read_done(workdir)
    distributed.wait("answers read")
    missing = [index for index in range(len(examples)) if index not in done]
    if done:
        distributed.say(f"continuing: {len(done):,} of {len(examples):,} are answered")
    prompts = [examples[index].prompt for index in missing]
    answers = generator.generate(prompts, numbers=missing, questions_only=config.context == "questions_only")
    progress = tqdm(total=len(missing), desc="answers", unit=" rows", disable=None if distributed.is_main() else True)
    with _partial(workdir).open("a", encoding="utf-8") if distributed.is_main() else open(os.devnull, "w") as file:
        for place, samples in answers:
            index = missing[place]
            done[index] = _row(index, examples[index], samples)
            file.write(json.dumps(done[index], ensure_ascii=False) + "\n")
            file.flush()
            progress.update()
    progress.close()
    rows = [done[index] for index in range(len(examples))]
    if kind_of(config.task) == YES_NO:
        probabilities = yes_probabilities(generator, examples)
        rows = [row | {"yes_probability": value} for row, value in zip(rows, probabilities, strict=True)]
    return rows


def _read_done(workdir: Path) -> dict[int, dict[str, Any]]:
    """The rows that are answered, by index: of a finished evaluation, and of an interrupted one.

    A line that was cut short is left out, and away.
    """
    done: dict[int, dict[str, Any]] = {}
    for path in (workdir / "predictions.jsonl", _partial(workdir)):
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", newline="\n") as file:  # texts may hold other ends of lines
            lines = list(file)
        done |= {row["index"]: row for row in (json.loads(line) for line in lines if line.endswith("\n"))}
        if lines and not lines[-1].endswith("\n") and distributed.is_main():
            write_predictions(path, list(done.values()))
    return done


def _row(index: int, example: Example, samples: Sequence[Any]) -> dict[str, Any]:
    conversation = example.prompt.conversation
    row = {
        "index": index,
        "smiles": list(conversation.smiles),
        "question": conversation.messages[-1].content,
        "prediction": samples[0].text,
        "target": example.target,
        "score": round(samples[0].score, 4),
    }
    return row | ({"samples": [sample.text for sample in samples]} if len(samples) > 1 else {})


def yes_probabilities(generator: Generator, examples: Sequence[Example]) -> list[float]:
    """P(yes) / (P(yes) + P(no)) of the first token of the answers "Yes" and "No"."""
    found = []
    for word in ("Yes", "No"):
        records = [
            example.prompt._replace(
                conversation=example.prompt.conversation._replace(
                    messages=(*example.prompt.conversation.messages, Message("assistant", word))
                )
            )
            for example in examples
        ]
        # the last answer's first token: before it come those of earlier answers
        earlier = [
            int(encoded.is_target[1:].sum()) for encoded in generator.encoder.encode([e.prompt for e in examples])
        ]
        values = generator.target_log_probabilities(records)
        found.append(np.array([row[count] for row, count in zip(values, earlier, strict=True)]))
    return [1 / (1 + math.exp(min(700.0, no - yes))) for yes, no in zip(*map(np.ndarray.tolist, found), strict=True)]


def _beyond(config: EvaluationConfig, generator: Generator, examples: Sequence[Example]) -> dict[str, Any]:
    """What scores against targets do not tell: whether the graph is used, and seen."""
    found: dict[str, Any] = {}
    if config.graph_use:
        found["graph_use"] = likelihood_graph_use(generator, examples[: config.graph_use])
    if config.group_questions:
        single = [example.prompt.conversation.smiles[0] for example in examples if len(example.prompt.graphs) == 1]
        questions = group_questions(list(dict.fromkeys(single))[: config.group_questions])
        asked = [Example(featurized(question.conversation), question.answer) for question in questions]
        answers = dict(generator.generate([example.prompt for example in asked]))
        found["group_questions"] = {
            "questions": len(questions),
            **classification_scores(
                [answers[index][0].text for index in range(len(questions))],
                [question.answer for question in questions],
                yes_probabilities(generator, asked),
            ),
        }
    return found


def _rejected(found: Examples) -> str:
    return f"; left out: {found.rejected}" if found.rejected else ""


def _git_commit() -> str | None:
    """Of the code that runs; None where it is not in a git repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None
