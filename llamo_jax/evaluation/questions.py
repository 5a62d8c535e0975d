"""Yes/no questions about functional groups, made from molecules: what is there, and what is not.

After POPE (Li et al., 2023): for every molecule one question about a group that it has and one about a group that it
has not; the latter are drawn as often as molecules have them, so that a common group alone is no hint.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from data_pipeline.conversation import Conversation, Message
from data_pipeline.describe import group_question
from data_pipeline.functional_groups import functional_groups
from data_pipeline.molecule import parse_smiles


class Question(NamedTuple):
    """A question about one molecule and its answer."""

    conversation: Conversation
    group: str
    answer: str  # Yes or No


def group_questions(smiles: Sequence[str], seed: int = 0) -> list[Question]:
    """Two questions, in random order, for each molecule that has a group and lacks one; raises InvalidMoleculeError."""
    groups = [sorted(functional_groups(parse_smiles(text))) for text in smiles]
    frequency = Counter(group for found in groups for group in found)
    questions = []
    for number, (text, present) in enumerate(zip(smiles, groups, strict=True)):
        absent = sorted(set(frequency) - set(present))
        if not present or not absent:
            continue
        rng = random.Random(f"{seed} {number} {text}")
        pair = [(rng.choice(present), "Yes"), (rng.choices(absent, [frequency[group] for group in absent])[0], "No")]
        rng.shuffle(pair)
        for group, answer in pair:
            ask = Message("user", group_question(group, rng))
            questions.append(Question(Conversation((text,), (ask,)), group, answer))
    return questions
