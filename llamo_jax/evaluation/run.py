"""An evaluation from a configuration: answers to a split, their scores, and a page that shows both.

A workdir holds `evaluation.json` (what is evaluated and how), `answers.partial.jsonl` while answers are being made,
and at the end `predictions.jsonl`, `metrics.json`, `false_claims.jsonl` (descriptions only) and `report.html`.
"""

import contextlib
import importlib.metadata
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from data_pipeline import storage
from data_pipeline.conversation import Message
from data_pipeline.embedded import prepare_embedded
from data_pipeline.errors import DataError
from data_pipeline.files import TableOptions
from data_pipeline.jobs import Runner
from data_pipeline.progress import watched
from data_pipeline.prompt import without_answers
from data_pipeline.records import featurized
from data_pipeline.tasks import Columns
from llamo_jax import distributed, sharding
from llamo_jax.config import ConfigError, DecodingConfig, differences, from_dict, to_dict
from llamo_jax.evaluation import intervals
from llamo_jax.evaluation.answers import classification_scores
from llamo_jax.evaluation.claims import checked_rows
from llamo_jax.evaluation.config import EvaluationConfig
from llamo_jax.evaluation.examples import Example, Examples, read_examples
from llamo_jax.evaluation.graph_use import likelihood_graph_use
from llamo_jax.evaluation.metric_tokenizer import load_metric_tokenizer
from llamo_jax.evaluation.questions import group_questions
from llamo_jax.evaluation.report import write_report
from llamo_jax.evaluation.scores import YES_NO, kind_of, score
from llamo_jax.generation.generator import Generator
from llamo_jax.loading import load_generator

EMBEDDED = "embedded"

RECORDED_VERSIONS = ("jax", "rdkit", "nltk", "rouge_score")

_READING = ("smiles_column", "text_column", "target_columns", "delimiter", "quoting", "encoding")

MAY_CHANGE = ("checkpoint", "data", *_READING, "cache_dir", "tensor")
"""Fields that may differ between two starts of one evaluation: the model and the examples are compared themselves."""


def read_config(values: Mapping[str, Any]) -> EvaluationConfig:
    """The configuration of an evaluation from its config file; raises ConfigError or DataError."""
    config = from_dict(EvaluationConfig, values.to_dict() if hasattr(values, "to_dict") else values)
    kind_of(config.task)
    return config


def evaluate(config: EvaluationConfig, workdir: os.PathLike) -> dict[str, Any]:
    """Answers, scores, report; the content of metrics.json. Continues what an interrupted one has answered.

    Raises ConfigError if another evaluation is in `workdir`, before anything there is changed.
    """
    tokenizer = load_metric_tokenizer(config.metric_tokenizer)  # before anything takes time
    columns = Columns(config.smiles_column or None, config.text_column or None, config.target_columns)
    table = TableOptions(config.delimiter.replace("\\t", "\t") or None, config.quoting or None, config.encoding or None)
    found = read_examples(_source(config), config.task, config.split, config.limit, columns, table)
    generator, fingerprint = load_generator(config.checkpoint, decoding=config.decoding, tensor=config.tensor)
    distributed.log(sharding.describe(generator.mesh))
    found = _that_are_prompts(found, generator)
    about = {
        "model": fingerprint[:16],
        "data": found.fingerprint,
        "prompt": generator.encoder.fingerprint()[:16],
        "config": {name: value for name, value in to_dict(config).items() if name not in MAY_CHANGE},
    }
    folder = storage.make_folder(workdir) if distributed.is_main() else storage.as_path(workdir)
    with storage.locked(folder) if distributed.is_main() else contextlib.nullcontext():
        distributed.wait("workdir locked")
        _claim(folder, about)
        distributed.log(f"{len(found.examples):,} examples{_rejected(found)}; everything goes into {folder}")
        rows = _answers(config, folder, generator, found.examples)
        extra = _beyond(config, generator, found.examples)
        metrics: dict[str, Any] = {"task": config.task, "rows": len(rows)}
        if distributed.is_main():
            of_questions = extra.get("group_questions", {}).pop("intervals", {})
            metrics |= score(config.task, rows, tokenizer) | extra
            metrics["intervals"] |= {f"group_questions.{name}": each for name, each in of_questions.items()}
            metrics |= {
                "model": {"checkpoint": config.checkpoint, "fingerprint": about["model"]},
                "source": {"data": config.data, "split": config.split, "fingerprint": about["data"]},
                "rejected": found.rejected,
                "decoding": to_dict(config.decoding),
                "context": config.context,
                "bootstrap": {
                    "confidence": intervals.CONFIDENCE,
                    "resamples": intervals.RESAMPLES,
                    "seed": intervals.SEED,
                },
                "git_commit": _git_commit(),
                "versions": {name: importlib.metadata.version(name) for name in RECORDED_VERSIONS},
            }
            storage.write_json_lines(folder / "predictions.jsonl", rows)
            if "hallucination" in metrics:
                storage.write_json_lines(folder / "false_claims.jsonl", checked_rows(rows))
            storage.write_json(folder / "metrics.json", metrics)
            write_report(folder / "report.html", config.task, metrics, rows)
            _partial(folder).unlink(missing_ok=True)
        distributed.wait("evaluated")
    return metrics


def _that_are_prompts(found: Examples, generator: Generator) -> Examples:
    """Without what the prompt style refuses, as a chat template that has no system's turns; raises DataError."""
    prompts = generator.encoder.encode_each([example.prompt for example in found.examples])
    kept = [example for example, prompt in zip(found.examples, prompts, strict=True) if prompt is not None]
    refused = len(found.examples) - len(kept)
    rejected = found.rejected | ({"refused by the prompt style": refused} if refused else {})
    if not kept:
        raise DataError(f"nothing to evaluate; {rejected}")
    return found._replace(examples=kept, rejected=rejected)


def _source(config: EvaluationConfig) -> Path:
    if config.data != EMBEDDED:
        return storage.as_path(config.data)
    folder = prepare_embedded(config.cache_dir, Runner(os.cpu_count() or 1)) / config.task
    if not folder.is_dir():
        raise ConfigError(
            f"config.task: the embedded corpus has no task {config.task!r}; it has description and instruction"
        )
    return folder


def _claim(workdir: epath.Path, about: Mapping[str, Any]) -> None:
    """Notes what is evaluated, or checks that the same evaluation was begun here; process 0 writes."""
    path = workdir / "evaluation.json"
    if path.exists():
        there = storage.read_json(path)
        with storage.understood(path):
            dict(there["config"]["decoding"])
        kept = {name: value for name, value in there["config"].items() if name not in MAY_CHANGE}
        kept["decoding"] = to_dict(from_dict(DecodingConfig, kept["decoding"]))  # fields may have come since
        found = [
            f"the {name} ({there[name]} there)"
            for name in ("model", "data", "prompt")
            if name in there and there[name] != about[name]
        ]
        found += differences(kept, about["config"])
        if found:
            raise ConfigError(
                f"{workdir} holds another evaluation; what differs: {'; '.join(found)}. Choose another --workdir"
            )
    elif storage.contents(workdir):
        raise ConfigError(f"{workdir} is not empty and holds no evaluation; choose another --workdir")
    distributed.wait("workdir looked at")
    if distributed.is_main():
        storage.write_json(path, about)


def _partial(workdir: epath.Path) -> epath.Path:
    return workdir / "answers.partial.jsonl"


def _answers(
    config: EvaluationConfig, workdir: epath.Path, generator: Generator, examples: Sequence[Example]
) -> list[dict[str, Any]]:
    """One row for each example, in their order; rows that an interrupted evaluation has made are read."""
    done = _read_done(workdir)
    distributed.wait("answers read")
    missing = [index for index in range(len(examples)) if index not in done]
    if done:
        distributed.log(f"continuing: {len(done):,} of {len(examples):,} are answered")
    prompts = [examples[index].prompt for index in missing]
    answers = generator.generate(prompts, numbers=missing, questions_only=config.context == "questions_only")
    progress = watched(total=len(missing), desc="answers", unit=" rows", disable=not distributed.is_main())
    with storage.LineWriter(_partial(workdir)) if distributed.is_main() else contextlib.nullcontext() as file:
        for place, samples in answers:
            index = missing[place]
            done[index] = _row(index, examples[index], samples)
            if file is not None:
                file.write(done[index])
            progress.update()
    progress.close()
    rows = [done[index] for index in range(len(examples))]
    if kind_of(config.task) == YES_NO:
        probabilities = yes_probabilities(generator, examples, questions_only=config.context == "questions_only")
        rows = [row | {"yes_probability": value} for row, value in zip(rows, probabilities, strict=True)]
    return rows


def _read_done(workdir: epath.Path) -> dict[int, dict[str, Any]]:
    """The rows that are answered, by index: of a finished evaluation, and of an interrupted one."""
    rows = [*storage.read_json_lines(workdir / "predictions.jsonl"), *storage.read_json_lines(_partial(workdir))]
    needed = {"index": int, "smiles": list, "question": str, "prediction": str, "target": str}
    whole = [row for row in rows if all(isinstance(row.get(name), kind) for name, kind in needed.items())]
    return {row["index"]: row for row in whole}  # others are answered again


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


def yes_probabilities(
    generator: Generator, examples: Sequence[Example], *, questions_only: bool = False
) -> list[float]:
    """P(yes) / (P(yes) + P(no)) of the first token of the answers "Yes" and "No".

    questions_only: earlier answers are left out of the prompts, as in `Generator.generate`.
    """
    found = []
    # target tokens before the answer: a conversation's earlier answers
    earlier = [int(prompt.is_target[1:].sum()) for prompt in generator.encoder.encode([e.prompt for e in examples])]
    for word in ("Yes", "No"):
        records = [
            example.prompt._replace(
                conversation=example.prompt.conversation._replace(
                    messages=(*example.prompt.conversation.messages, Message("assistant", word))
                )
            )
            for example in examples
        ]
        conversations = generator.encoder.encode(records)
        before = earlier
        if questions_only:
            pairs = zip(conversations, earlier, strict=True)
            conversations = [without_answers(conversation, count) for conversation, count in pairs]
            before = [0] * len(earlier)
        # log-probabilities list the tokens of every answer; the last one's first stands behind those of earlier ones
        values = generator.log_probabilities(conversations)
        found.append(np.array([row[count] for row, count in zip(values, before, strict=True)]))
    return [1 / (1 + math.exp(min(700.0, no - yes))) for yes, no in zip(*map(np.ndarray.tolist, found), strict=True)]


def _beyond(config: EvaluationConfig, generator: Generator, examples: Sequence[Example]) -> dict[str, Any]:
    """What scores against targets do not tell: whether the graph is used, and seen."""
    found: dict[str, Any] = {}
    if config.graph_use and generator.encoder.show_graph:
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
                [question.conversation.smiles for question in questions],  # two about each
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
