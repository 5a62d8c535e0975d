"""From replies to files: what is kept of each conversation, what is rejected and why, and the counts of both."""

import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from data_pipeline.claims import claims_in
from data_pipeline.instruct.diversity import Diversity
from data_pipeline.instruct.grounding import Finding
from data_pipeline.instruct.mending import shown_of
from data_pipeline.instruct.quality import Shown, Thresholds, Verdict, judged
from data_pipeline.instruct.requests import Reply
from data_pipeline.instruct.seeds import Seed, facts_about
from data_pipeline.progress import watched
from data_pipeline.storage import LineWriter

AT_A_TIME = 64
"""Conversations that are judged before the next ones are read: memory does not grow with their number."""


class Written(NamedTuple):
    """What a teacher made of a plan: a reply, or why there is none."""

    key: str
    kind: str
    seeds: tuple[Seed, ...]
    reply: Reply | None
    refusal: str | None
    mended: bool


class Assembly:
    """The files that are being written, and what they will be said to hold; made by `Assembly.writing`.

    tried, seen: conversations that were to be added, and those of them that a teacher wrote or refused.
    kept, kept_kinds: those that are kept, and their kinds.
    """

    def __init__(self, good: LineWriter, bad: LineWriter, thresholds: Thresholds, provenance: Mapping[str, Any]):
        self._good, self._bad, self._thresholds, self._provenance = good, bad, thresholds, dict(provenance)
        self._diversity = Diversity(thresholds.near_duplicate)
        self._repeated: Counter[str] = Counter()
        self._rejected_rows: Counter[str] = Counter()
        self._findings: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._asked_kinds: Counter[str] = Counter()
        self.kept_kinds: Counter[str] = Counter()
        self.tried = self.seen = self.kept = 0

    @classmethod
    @contextlib.contextmanager
    def writing(
        cls, good: epath.Path, bad: epath.Path, thresholds: Thresholds, provenance: Mapping[str, Any]
    ) -> Iterator["Assembly"]:
        """Writes to these two files, which the caller names when all is written."""
        with LineWriter(good) as kept, LineWriter(bad) as rejected:
            yield cls(kept, rejected, thresholds, provenance)

    def reject_row(self, row: Mapping[str, Any]) -> None:
        """A row that no conversation starts from."""
        self._rejected_rows[row["reason"]] += 1
        self._bad.write(row)

    def add(self, written: Iterable[Written], count: int) -> None:
        """Judges so many conversations, in their order, and writes what is kept of them, and what is not."""
        source = iter(watched(written, desc="checks", total=count, unit=" conversations"))
        self.tried += count
        with _judges(count) as judge:
            while batch := list(itertools.islice(source, AT_A_TIME)):
                jobs = [(_shown(each), self._thresholds) for each in batch if each.reply is not None]
                verdicts = iter(judge(jobs))
                for each in batch:
                    self._add(each, next(verdicts) if each.reply is not None else None)

    def _add(self, written: Written, verdict: Verdict | None) -> None:
        self.seen += 1
        self._asked_kinds[written.kind] += 1
        if verdict is None:
            findings = [Finding("teacher", written.refusal or "no answer", "")]
            self._reject(written, findings, ())
            return
        shown = _shown(written)
        repeats = self._repeats(shown._replace(messages=verdict.kept))
        findings = [*verdict.findings, *repeats]
        kept = verdict.kept[: repeats[0].turn - 1] if repeats else verdict.kept
        self._counts.update(claims=verdict.claims, true_claims=verdict.true, mended=written.mended)
        if kept:
            twin = self._diversity.twin(written.key, shown.smiles, kept)
            if twin is not None:
                findings.append(Finding("diversity", "near-duplicate", f"of {twin}"))
                kept = ()
        if findings:
            self._reject(written, findings, shown.messages[len(kept) :])
        if not kept:
            return
        self.kept += 1
        self.kept_kinds[written.kind] += 1
        self._counts.update(turns=len(kept) // 2, cut=len(kept) < len(shown.messages))
        for smiles in shown.smiles:
            self._diversity.sized(facts_about(smiles).basic.heavy_atoms)
        self._good.write(self._row(written, shown, len(kept)))

    def _repeats(self, shown: Shown) -> list[Finding]:
        """Answers that many molecules get, word by word, and that claim nothing: they do not depend on the molecule."""
        found = []
        for turn, message in enumerate(shown.messages):
            if message.role != "assistant" or claims_in(message.content):
                continue
            self._repeated[message.content] += 1
            if self._repeated[message.content] > self._thresholds.max_repeats:
                reason = "an answer that does not depend on the molecule"
                found.append(Finding("informativeness", reason, message.content[:100], turn))
        return found

    def _reject(self, written: Written, findings: list[Finding], messages: Any) -> None:
        for name in dict.fromkeys(f"{finding.check}: {finding.reason}" for finding in findings):
            self._findings[name] += 1
        for finding in findings:
            self._examples.setdefault(f"{finding.check}: {finding.reason}", finding.detail)
        self._bad.write(
            {
                "id": written.key,
                "kind": written.kind,
                "smiles": [seed.smiles for seed in written.seeds],
                "reasons": [finding._asdict() for finding in findings],
                "messages": [message._asdict() for message in messages],
                "seeds": [seed.source() for seed in written.seeds],
            },
        )

    def _row(self, written: Written, shown: Shown, kept: int) -> dict[str, Any]:
        smiles = list(shown.smiles)
        return {
            "smiles": smiles[0] if len(smiles) == 1 else smiles,
            "messages": [message._asdict() for message in shown.messages[:kept]],
            "id": written.key,
            "kind": written.kind,
            "provenance": {
                "seeds": [seed.source() for seed in written.seeds],
                **self._provenance,
                "mended": written.mended,
                "messages_cut": len(shown.messages) - kept,
            },
        }

    def report(self, shares: Mapping[str, float]) -> dict[str, Any]:
        """What quality.json says of them."""
        total = sum(shares.values())
        claims = self._counts["claims"]
        return {
            "conversations": self.kept,
            "written": self.seen,
            "turns": self._counts["turns"],
            "cut": self._counts["cut"],
            "mended": self._counts["mended"],
            "kinds": {
                kind: {
                    "asked": share / total,
                    "share": self.kept_kinds[kind] / max(1, self.kept),
                    "conversations": self.kept_kinds[kind],
                    "written": self._asked_kinds[kind],
                }
                for kind, share in shares.items()
            },
            "claims": claims,
            "true_claims": self._counts["true_claims"],
            "grounded": self._counts["true_claims"] / claims if claims else None,
            "findings": dict(self._findings.most_common()),
            "examples": self._examples,
            "rejected_rows": dict(self._rejected_rows.most_common()),
            "diversity": {
                **self._diversity.report(),
                "near_duplicates": self._findings["diversity: near-duplicate"] / max(1, self.seen),
            },
        }


def _shown(written: Written) -> Shown:
    assert written.reply is not None
    return shown_of(written.kind, written.seeds, written.reply)


def _judged(job: tuple[Shown, Thresholds]) -> Verdict:
    return judged(*job)


@contextlib.contextmanager
def _judges(conversations: int) -> Iterator[Any]:
    """A function from jobs to verdicts, in their order: by all cores, where that is worth starting processes."""
    workers = len(os.sched_getaffinity(0))
    if conversations < 500 or workers == 1:
        yield lambda jobs: map(_judged, jobs)
        return
    with concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        yield lambda jobs: pool.map(_judged, jobs, chunksize=8)
