"""Asking a teacher once to mend what its conversation gets wrong, with the reasons."""

from collections.abc import Sequence

from data_pipeline.conversation import Message
from data_pipeline.instruct.grounding import Finding
from data_pipeline.instruct.quality import Shown, Thresholds, judged
from data_pipeline.instruct.requests import Reply, Request, parsed
from data_pipeline.instruct.seeds import Seed, digest_of
from data_pipeline.instruct.teachers import Answer

_ASK = (
    "Some of that is wrong or does not belong there:\n{}\n"
    "Write the whole conversation again without it, in the same form."
)


def shown_of(kind: str, seeds: Sequence[Seed], reply: Reply) -> Shown:
    """A reply with what it is judged by."""
    texts = tuple("\n".join(filter(None, (seed.description, seed.name))) for seed in seeds)
    messages = tuple(Message(turn.role, turn.content) for turn in reply.messages)
    return Shown(kind, tuple(seed.smiles for seed in seeds), texts, messages)


def mending(
    request: Request, answer: Answer, about: tuple[str, Sequence[Seed]], thresholds: Thresholds
) -> Request | None:
    """The request that names what is wrong with the answer to another one; None if nothing is."""
    reply = parsed(answer.text, Reply)
    assert isinstance(reply, Reply)
    findings = judged(shown_of(*about, reply), thresholds).findings
    if not findings:
        return None
    faults = "\n".join(dict.fromkeys(_told(finding) for finding in findings))
    mend = request.followed_by(Message("assistant", answer.text), Message("user", _ASK.format(faults)))
    # one mending of a reply, whatever thresholds found in it: they may change without asking again
    return mend._replace(key=digest_of(f"mend {request.key} {answer.text}"))


def better(about: tuple[str, Sequence[Seed]], mended: Answer, answer: Answer, thresholds: Thresholds) -> bool:
    """Whether a mended reply leaves at least as much as the one that it replaces."""
    kept = []
    for each in (mended, answer):
        reply = parsed(each.text, Reply)
        assert isinstance(reply, Reply)
        kept.append(len(judged(shown_of(*about, reply), thresholds).kept))
    return kept[0] >= kept[1]


def _told(finding: Finding) -> str:
    where = "" if finding.turn < 0 else f"message {finding.turn + 1}: "
    return f"- {where}{finding.reason}: {finding.detail}"
