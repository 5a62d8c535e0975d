"""Descriptions and conversations about a molecule, written only from facts that RDKit can prove.

The wording varies, the facts do not: which sentences, which phrasing and in which order is drawn from a generator that
is seeded by the molecule, so the same molecule always gets the same text.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rdkit import Chem
from rdkit.Chem import FindMolChiralCenters, rdMolDescriptors
from rdkit.Chem.Descriptors import MolWt  # type: ignore[attr-defined]

from data_pipeline.conversation import Message
from data_pipeline.functional_groups import FUNCTIONAL_GROUPS, functional_groups, ring_systems

ELEMENT_NAMES = {"C": "carbon", "N": "nitrogen", "O": "oxygen", "S": "sulfur", "P": "phosphorus", "F": "fluorine",
                  "Cl": "chlorine", "Br": "bromine", "I": "iodine", "B": "boron", "Si": "silicon"}  # fmt: skip

DESCRIPTION_REQUESTS = (
    "Describe this molecule.",
    "Describe the molecule.",
    "Give me a brief overview of this molecule.",
    "What can you tell me about this compound?",
    "Please describe the structure shown.",
    "What kind of molecule is this?",
)


class Facts(NamedTuple):
    """What RDKit proves about a molecule; the only source of every sentence below."""

    formula: str
    weight: float  # g/mol
    groups: dict[str, int]  # functional group → occurrences
    rings: list[str]
    aromatic: bool
    stereocentres: int
    charge: int
    donors: int
    acceptors: int
    heavy_atoms: int
    elements: dict[str, int]  # heavy elements only, by symbol


def facts_of(mol: Chem.Mol) -> Facts:
    """The facts of one molecule; H-bond donors and acceptors by RDKit's Lipinski-like definitions."""
    return Facts(
        formula=rdMolDescriptors.CalcMolFormula(mol),
        weight=MolWt(mol),
        groups=functional_groups(mol),
        rings=ring_systems(mol),
        aromatic=any(atom.GetIsAromatic() for atom in mol.GetAtoms()),
        stereocentres=len(FindMolChiralCenters(mol, includeUnassigned=True, useLegacyImplementation=False)),
        charge=Chem.GetFormalCharge(mol),
        donors=rdMolDescriptors.CalcNumHBD(mol),
        acceptors=rdMolDescriptors.CalcNumHBA(mol),
        heavy_atoms=mol.GetNumHeavyAtoms(),
        elements=dict(Counter(atom.GetSymbol() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1)),
    )


def describe(facts: Facts, rng: random.Random) -> str:
    """A description: the functional groups, the rings and one other fact, in varied wording."""
    writers = (_groups, _rings, rng.choice((_formula, _hydrogen_bonds, _stereo, _charge, _elements)))
    sentences = [writer(facts, rng) for writer in writers]
    subject = rng.choice(("The molecule", "This molecule", "This compound"))
    return " ".join([subject + sentences[0], *("It" + sentence for sentence in sentences[1:])])


def description_messages(facts: Facts, rng: random.Random) -> list[Message]:
    """One turn: a request for a description and the description."""
    return [Message("user", rng.choice(DESCRIPTION_REQUESTS)), Message("assistant", describe(facts, rng))]


def conversation_messages(facts: Facts, rng: random.Random) -> list[Message]:
    """Two to four turns about single facts; half of the conversations begin with a description."""
    turns = []
    if rng.random() < 0.5:
        turns.append((rng.choice(DESCRIPTION_REQUESTS), describe(facts, rng)))
    turns += [_yes_no_turn(facts, rng)]
    topics = rng.sample(TOPICS, k=rng.choice((1, 2)))
    turns += [(rng.choice(topic.questions), "It" + topic.predicate(facts, rng)) for topic in topics]
    if turns[0][0] not in DESCRIPTION_REQUESTS:
        rng.shuffle(turns)
    return [message for ask, answer in turns for message in (Message("user", ask), Message("assistant", answer))]


def _groups(facts: Facts, rng: random.Random) -> str:
    if not facts.groups:
        return rng.choice((" has no functional groups.", " carries no functional groups."))
    if len(facts.groups) == 1:
        groups = article(f"{next(iter(facts.groups))} group")
    else:
        groups = f"{listed(facts.groups)} groups"
    return rng.choice((" contains {}.", " has {}.", " carries {}.")).format(groups)


def _rings(facts: Facts, rng: random.Random) -> str:
    if not facts.rings:
        return rng.choice((" is acyclic.", " has no rings."))
    counts = Counter(facts.rings)
    phrases = [article(name) if count == 1 else f"{count} {name}s" for name, count in counts.items()]
    return rng.choice((" is built on {}.", " includes {}.")).format(listed(phrases))


def _formula(facts: Facts, rng: random.Random) -> str:
    template = rng.choice((" has the formula {} and weighs {:.1f} g/mol.", " is {} with a mass of {:.1f} g/mol."))
    return template.format(facts.formula, facts.weight)


def _hydrogen_bonds(facts: Facts, rng: random.Random) -> str:
    return rng.choice((" has {} and {}.", " offers {} and {}.")).format(
        counted(facts.donors, "hydrogen-bond donor"), counted(facts.acceptors, "acceptor")
    )


def _stereo(facts: Facts, rng: random.Random) -> str:
    return f" has {counted(facts.stereocentres, 'stereocentre')}."


def _charge(facts: Facts, rng: random.Random) -> str:
    if facts.charge == 0:
        return rng.choice((" is neutral.", " has no net charge."))
    return f" has a net charge of {facts.charge:+d}."


def _elements(facts: Facts, rng: random.Random) -> str:
    named = {ELEMENT_NAMES.get(symbol, symbol): count for symbol, count in sorted(facts.elements.items())}
    return f" has {listed(f'{count} {name}' for name, count in named.items())} atoms."


def _aromatic(facts: Facts, rng: random.Random) -> str:
    return " is aromatic." if facts.aromatic else " is not aromatic."


class Topic(NamedTuple):
    """Something to ask about a molecule; predicate: the answer, for any subject, such as " is neutral."."""

    name: str
    questions: Sequence[str]
    predicate: Callable[[Facts, random.Random], str]


TOPICS = (
    Topic(
        "functional groups",
        ("Which functional groups does it have?", "List its functional groups.", "What functional groups are there?"),
        _groups,
    ),
    Topic("ring systems", ("Which rings does it contain?", "What ring systems does it have?"), _rings),
    Topic(
        "formulas and masses",
        ("What is its formula and mass?", "Give its molecular formula and weight."),
        _formula,
    ),
    Topic(
        "hydrogen-bond donors and acceptors",
        ("How many hydrogen-bond donors and acceptors does it have?",),
        _hydrogen_bonds,
    ),
    Topic(
        "stereocentres",
        ("How many stereocentres does it have?", "Is it chiral, and how many stereocentres are there?"),
        _stereo,
    ),
    Topic("net charges", ("What is its net charge?", "Is it charged?"), _charge),
    Topic("elements", ("Which elements does it consist of?", "Count its heavy atoms by element."), _elements),
    Topic("aromatic parts", ("Is it aromatic?",), _aromatic),
)


def group_question(name: str, rng: random.Random) -> str:
    """Asks whether the molecule has a functional group."""
    return rng.choice(("Does it contain {}?", "Is there {}?")).format(article(f"{name} group"))


def _yes_no_turn(facts: Facts, rng: random.Random) -> tuple[str, str]:
    """A question about one functional group, present or absent with equal probability where both are possible."""
    present = bool(facts.groups) and rng.random() < 0.5
    pool = tuple(facts.groups) if present else tuple(name for name in FUNCTIONAL_GROUPS if name not in facts.groups)
    name = rng.choice(pool)
    ask = group_question(name, rng)
    if not present:
        return ask, f"No, it has no {name} group."
    return ask, f"Yes, it has {counted(facts.groups[name], f'{name} group')}."


def counted(count: int, noun: str) -> str:
    """Such as "no rings", "1 ring", "2 rings"."""
    return f"{count or 'no'} {noun}{'s' * (count != 1)}"


def article(noun: str) -> str:
    """With its article, by sound: "an 8-membered ring", "an 11-membered ring", "a urea group"."""
    return f"{'an' if noun.startswith(('a', 'e', 'i', 'o', '8', '11-', '18-')) else 'a'} {noun}"


def listed(words: Iterable[str]) -> str:
    """Such as "a, b and c"."""
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last
