"""Requests as files for the hosted batch interfaces, and their results: cheaper, and without a connection kept open.

A line of a request file is {"custom_id", "method", "url", "body"}, one of a result {"custom_id", "response":
{"status_code", "body"}, "error"}; custom_id is the request's key.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from etils import epath

from data_pipeline import storage
from data_pipeline.errors import DataError
from data_pipeline.files import BadRow, read_rows
from data_pipeline.instruct.job import Job
from data_pipeline.instruct.openai_teacher import body, read_completion
from data_pipeline.instruct.plan import Planned
from data_pipeline.instruct.replies import Spent
from data_pipeline.instruct.requests import Reply, ReplyError, parsed
from data_pipeline.instruct.teachers import RefusedError, TryAgainError


def write(
    job: Job, items: Sequence[Planned], asked: Mapping[str, Any], path: epath.Path, structure: str = "schema"
) -> str:
    """Writes what is not answered yet; returns a line for people."""
    if asked.get("teacher") != "openai":
        raise DataError("--write_batch is for --teacher openai")
    if path.is_dir() or not path.parent.is_dir():
        raise DataError(f"{path} cannot be written; give the name of a file in a folder that is there")
    count = 0
    with storage.writing(path) as partial, storage.LineWriter(partial) as lines:
        for item in job.unanswered(items):
            request = job.plan.request(item)
            content = body(dict(asked), request, structure)
            lines.write({"custom_id": request.key, "method": "POST", "url": "/v1/chat/completions", "body": content})
            count += 1
    return f"{path}: {count:,} requests; give the results to --read_batch, with the same other options"


def read(job: Job, paths: Sequence[Path]) -> str:
    """Keeps the replies of result files; returns a line for people. Raises DataError if a file is none."""
    outcomes: Counter[str] = Counter()
    planned = {item.key for item in job.plan.items}
    for path in paths:
        for row in read_rows(path):
            outcomes[_read(job, row, planned)] += 1
    kept = outcomes.pop("kept", 0)
    others = "".join(f"; {count:,} {reason}" for reason, count in outcomes.most_common())
    return f"{kept:,} replies read{others}"


def _read(job: Job, row: Mapping[str, Any] | BadRow, planned: Set[str]) -> str:
    if isinstance(row, BadRow) or not isinstance(row.get("custom_id"), str):
        return "lines that are no results"
    key, response = row["custom_id"], row.get("response")
    if key not in planned:
        return "of another job"
    if job.replies.has(key):
        return "answered before"
    if row.get("error") or not isinstance(response, dict) or response.get("status_code") != 200:
        return "failed, to be asked again"
    try:
        answer = read_completion(json.dumps(response.get("body")))
        parsed(answer.text, Reply)
    except RefusedError as error:
        job.replies.refuse(key, error.reason)
        return error.reason
    except (TryAgainError, ReplyError) as error:
        return f"unusable ({error.reason}), to be asked again"
    job.replies.spend(Spent(1, *answer.usage))
    job.replies.keep(key, answer)
    return "kept"
