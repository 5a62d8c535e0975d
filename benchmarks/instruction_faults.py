"""Planted faults: how many of the contradictions in written conversations the checks find, and what they find in vain.

    python -m data_pipeline.instruct --input FILE --output DIR
    python -m benchmarks.instruction_faults --conversations DIR/conversations.jsonl [--count 400] [--json]

Every conversation is judged as it is, and with one fault: an answer about another molecule, a count that is wrong, a
functional group that is not there, a wrong charge, or two answers swapped. Prints a table by fault, and JSON.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rdkit import Chem

from data_pipeline.conversation import Message
from data_pipeline.describe import article, describe, facts_of
from data_pipeline.files import read_rows
from data_pipeline.functional_groups import FUNCTIONAL_GROUPS, functional_groups
from data_pipeline.instruct.quality import Shown, Thresholds, judged

Plant = Callable[[Shown, str, random.Random], Sequence[Message] | None]


def another_molecule(shown: Shown, other: str, rng: random.Random) -> Sequence[Message] | None:
    """The first answer is a description of another molecule, of another formula."""
    facts = facts_of(Chem.MolFromSmiles(other))
    if facts.formula == facts_of(Chem.MolFromSmiles(shown.smiles[0])).formula or len(shown.smiles) > 1:
        return None
    return _with(shown, 1, describe(facts, rng))


def wrong_count(shown: Shown, other: str, rng: random.Random) -> Sequence[Message] | None:
    """A number of groups, rings, atoms, bonds or stereocentres is one to three too large."""
    counted = (
        r"\b(\d+)(?= (?:hydrogen-bond donor|acceptor|stereocentre|rings?\b|aromatic ring|rotatable|heavy|[\w ]+ group))"
    )
    places = [(turn, match) for turn in _answers(shown) for match in re.finditer(counted, shown.messages[turn].content)]
    if not places:
        return None
    turn, match = rng.choice(places)
    text = shown.messages[turn].content
    return _with(shown, turn, f"{text[: match.start()]}{int(match[0]) + rng.randint(1, 3)}{text[match.end() :]}")


def absent_group(shown: Shown, other: str, rng: random.Random) -> Sequence[Message] | None:
    """An answer ends with a group that no molecule of the conversation has."""
    there = {name for smiles in shown.smiles for name in functional_groups(Chem.MolFromSmiles(smiles))}
    name = rng.choice([name for name in FUNCTIONAL_GROUPS if name not in there])
    turn = rng.choice(_answers(shown))
    subject = "It" if len(shown.smiles) == 1 else "The first molecule"
    return _with(shown, turn, f"{shown.messages[turn].content} {subject} also has {article(f'{name} group')}.")


def wrong_charge(shown: Shown, other: str, rng: random.Random) -> Sequence[Message] | None:
    """An answer ends with a charge that is not the molecule's."""
    charge = Chem.GetFormalCharge(Chem.MolFromSmiles(shown.smiles[0]))
    wrong = rng.choice([value for value in (-2, -1, 1, 2) if value != charge])
    turn = rng.choice(_answers(shown))
    subject = "It" if len(shown.smiles) == 1 else "The first molecule"
    return _with(shown, turn, f"{shown.messages[turn].content} {subject} has a net charge of {wrong:+d}.")


def swapped_answers(shown: Shown, other: str, rng: random.Random) -> Sequence[Message] | None:
    """Two answers change places."""
    answers = _answers(shown)
    if len(answers) < 2 or shown.kind == "unknown":
        return None
    one, two = rng.sample(answers, 2)
    first, second = shown.messages[one].content, shown.messages[two].content
    return None if first == second else _with(shown._replace(messages=tuple(_with(shown, one, second))), two, first)


FAULTS: dict[str, Plant] = {
    plant.__name__: plant for plant in (another_molecule, wrong_count, absent_group, wrong_charge, swapped_answers)
}


def _answers(shown: Shown) -> list[int]:
    return [turn for turn, message in enumerate(shown.messages) if message.role == "assistant"]


def _with(shown: Shown, turn: int, text: str) -> list[Message]:
    return [*shown.messages[:turn], Message("assistant", text), *shown.messages[turn + 1 :]]


def measure(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Shares by fault, the share of untouched conversations with a finding, and what was missed."""
    rng = random.Random(seed)
    thresholds = Thresholds()
    planted: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    alarms, missed = [], []
    for number, row in enumerate(rows):
        smiles = (row["smiles"],) if isinstance(row["smiles"], str) else tuple(row["smiles"])
        messages = tuple(Message(message["role"], message["content"]) for message in row["messages"])
        shown = Shown(row["kind"], smiles, tuple(row.get("texts", ("",))), messages)
        # a role that stands in the seed's text is no alarm here, where that text is not at hand
        findings = [f for f in judged(shown, thresholds).findings if not f.reason.startswith("not in")]
        if findings:
            alarms.append([messages[findings[0].turn].content, findings[0].reason, findings[0].detail])
        other = rows[(number + len(rows) // 2) % len(rows)]["smiles"]
        names = rng.sample(list(FAULTS), len(FAULTS))
        names.sort(key=lambda name: planted[name])  # the fault that is rarest so far, if it has a place here
        for name in names:
            faulty = FAULTS[name](shown, other if isinstance(other, str) else other[0], rng)
            if faulty is not None:
                planted[name] += 1
                if [
                    f for f in judged(shown._replace(messages=tuple(faulty)), thresholds).findings if f not in findings
                ]:
                    caught[name] += 1
                else:
                    new = [m.content for m, old in zip(faulty, messages, strict=True) if m != old]
                    missed.append([name, smiles[0], *new])
                break
    return {
        "conversations": len(rows),
        "false_alarms": len(alarms) / len(rows),
        "caught": sum(caught.values()) / sum(planted.values()),
        "faults": {name: {"planted": planted[name], "caught": caught[name] / planted[name]} for name in FAULTS},
        "alarms": alarms,
        "missed": missed,
    }


def main() -> None:
    """Prints the table and, last, one JSON object."""
    parser = argparse.ArgumentParser(prog="benchmarks.instruction_faults", description=__doc__)
    parser.add_argument("--conversations", type=Path, required=True)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="the JSON object alone")
    options = parser.parse_args()
    rows: list[Any] = list(read_rows(options.conversations))
    result = measure(random.Random(options.seed).sample(rows, min(len(rows), options.count)), options.seed)
    if not options.json:
        for name, counts in result["faults"].items():
            print(f"{name:<18}{counts['planted']:>6}{counts['caught']:>9.1%}")
        print(f"{'all':<18}{sum(c['planted'] for c in result['faults'].values()):>6}{result['caught']:>9.1%}")
        print(f"false alarms {result['false_alarms']:.1%} of {result['conversations']}")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
