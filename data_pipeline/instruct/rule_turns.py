"""Questions and their answers from facts alone, by what they are about; the words of the teacher `rules`."""

import random
from collections import Counter
from collections.abc import Callable

from data_pipeline.describe import ELEMENT_NAMES, TOPICS, article, counted, group_question, listed
from data_pipeline.functional_groups import FUNCTIONAL_GROUPS
from data_pipeline.instruct.seeds import MoleculeFacts

Turn = tuple[str, str]
"""A question and its answer."""


def sentence(subject: str, facts: MoleculeFacts, rng: random.Random) -> str:
    """One fact with its subject, such as "it is neutral."."""
    return subject + rng.choice(TOPICS).predicate(facts.basic, rng)


# structure: a question and its answer, or None where the molecule has nothing to ask about


def _any_fact(facts: MoleculeFacts, rng: random.Random) -> Turn:
    topic = rng.choice(TOPICS)
    return rng.choice(topic.questions), "It" + topic.predicate(facts.basic, rng)


def _has_group(facts: MoleculeFacts, rng: random.Random) -> Turn:
    groups = facts.basic.groups
    present = bool(groups) and rng.random() < 0.5
    name = rng.choice(list(groups) if present else [name for name in FUNCTIONAL_GROUPS if name not in groups])
    ask = group_question(name, rng)
    if present:
        return ask, f"Yes, it has {counted(groups[name], f'{name} group')}{_among(groups, name, rng)}."
    return ask, f"No, it has no {name} group. It{_groups(facts)}"


def _among(groups: dict[str, int], name: str, rng: random.Random) -> str:
    others = [other for other in groups if other != name]
    if not others or rng.random() < 0.3:
        return ""
    return f", beside {article(f'{rng.choice(others)} group')}"


def _count_of_group(facts: MoleculeFacts, rng: random.Random) -> Turn | None:
    if not facts.basic.groups:
        return None
    name, count = rng.choice(list(facts.basic.groups.items()))
    return f"How many {name} groups does it have?", f"It has {counted(count, f'{name} group')}."


def _ring_count(facts: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("How many rings are there?", "Count its rings.", "How many rings does the structure have?"))
    if not facts.rings:
        return ask, "It has no rings; it is acyclic."
    if facts.aromatic_rings:
        of_them = f", counting {facts.aromatic_rings} aromatic ring{'s' * (facts.aromatic_rings != 1)}"
    else:  # of azulene, RDKit calls the atoms aromatic and neither ring
        of_them = "" if facts.basic.aromatic else ", and it is not aromatic"
    return ask, f"It has {counted(facts.rings, 'ring')}{of_them}."


def _mass(facts: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("What is its molar mass?", "How heavy is the molecule?", "What does a mole of it weigh?"))
    return ask, rng.choice(("It weighs {:.1f} g/mol.", "It has a molar mass of {:.1f} g/mol.")).format(
        facts.basic.weight
    )


def _heavy_atoms(facts: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("How many heavy atoms does it have?", "How large is it, in non-hydrogen atoms?"))
    return ask, f"It has {counted(facts.basic.heavy_atoms, 'heavy atom')}."


def _rotatable_bonds(facts: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("How many rotatable bonds does it have?", "Around how many bonds can it turn freely?"))
    return ask, f"It has {counted(facts.rotatable_bonds, 'rotatable bond')}."


def _configuration(facts: MoleculeFacts, rng: random.Random) -> Turn | None:
    centres = {label: facts.configuration.get(label, 0) for label in "RS"}
    if not any(centres.values()):
        return None
    told = [
        f"{count} ({label})-configured stereocentre{'s' * (count != 1)}" for label, count in centres.items() if count
    ]
    ask = rng.choice(("Which configuration do its stereocentres have?", "Are its stereocentres R or S?"))
    return ask, f"As drawn, it has {listed(told)}."


def _double_bonds(facts: MoleculeFacts, rng: random.Random) -> Turn | None:
    bonds = {label: facts.configuration.get(label, 0) for label in "EZ"}
    if not any(bonds.values()):
        return None
    told = [f"{count} {label}-configured double bond{'s' * (count != 1)}" for label, count in bonds.items() if count]
    return "Are there E or Z double bonds?", f"It has {listed(told)}."


def _has_element(facts: MoleculeFacts, rng: random.Random) -> Turn:
    symbol = rng.choice([symbol for symbol in ELEMENT_NAMES if symbol != "C"])
    name, count = ELEMENT_NAMES[symbol], facts.basic.elements.get(symbol, 0)
    ask = rng.choice((f"Does it contain {name}?", f"Is there any {name} in it?"))
    if count:
        return ask, f"Yes, it has {count} {name} atom{'s' * (count != 1)}."
    others = [ELEMENT_NAMES.get(other, other) for other in sorted(facts.basic.elements)]
    return ask, f"No, it has no {name}; its heavy atoms are {listed(others)}."


STRUCTURE: tuple[Callable[[MoleculeFacts, random.Random], Turn | None], ...] = (
    _any_fact, _any_fact, _has_group, _has_group, _count_of_group, _ring_count, _mass, _heavy_atoms,
    _rotatable_bonds, _configuration, _double_bonds, _has_element,
)  # fmt: skip


def _groups(facts: MoleculeFacts) -> str:
    names = list(facts.basic.groups)
    if not names:
        return " has no functional groups."
    return f" has {article(f'{names[0]} group') if len(names) == 1 else f'{listed(names)} groups'}."


# property: what descriptors suggest; thresholds are the usual ones of medicinal chemistry


def _solubility(facts: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("Should it dissolve in water?", "What would you expect of its solubility in water?",
                      "Is it more at home in water or in oil?"))  # fmt: skip
    if facts.basic.charge:
        lead = f"As an ion, with a net charge of {facts.basic.charge:+d}, it should prefer water"
    elif facts.logp > 3:
        lead = "Rather poorly in water"
    elif facts.logp < 0:
        lead = "Rather well in water"
    else:
        lead = "Somewhere between water and oil"
    return ask, (
        f"{lead}: its Crippen logP is {facts.logp:.2f}, and its polar surface area is {facts.surface:.1f} Å². "
        "That is an estimate from the structure, not a measurement."
    )


def _hydrogen_bonding(facts: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("How well can it form hydrogen bonds?", "Could it bind to a protein by hydrogen bonds?",
                      "Can it give and take hydrogen bonds?"))  # fmt: skip
    donors, acceptors = facts.basic.donors, facts.basic.acceptors
    lead = {
        (True, True): "It can do both, give and take hydrogen bonds",
        (True, False): "It can only give hydrogen bonds",
        (False, True): "It can only take hydrogen bonds",
        (False, False): "It can form none",
    }[donors > 0, acceptors > 0]
    return ask, f"{lead}: it has {counted(donors, 'hydrogen-bond donor')} and {counted(acceptors, 'acceptor')}."


def _permeability(facts: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("Could it pass a cell membrane by itself?", "Would it be absorbed through the gut wall?"))
    fits = facts.surface <= 140 and facts.rotatable_bonds <= 10  # Veber et al., 2002
    lead = "By size and polarity that is plausible" if fits else "By size and polarity that is not likely"
    return ask, (
        f"{lead}: its polar surface area is {facts.surface:.1f} Å² (a common limit is at 140), and it has "
        f"{counted(facts.rotatable_bonds, 'rotatable bond')} (10)."
    )


def _drug_likeness(facts: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("Does it follow Lipinski's rule of five?", "Is it drug-like by Lipinski's rules?"))
    broken = facts.rule_of_five
    number = ("none", "one", "two", "three", "four")[broken]
    lead = "Yes" if broken < 2 else "No"
    return ask, (
        f"{lead}, it violates {number} of Lipinski's four rules: it weighs {facts.basic.weight:.1f} g/mol, its "
        f"Crippen logP is {facts.logp:.2f}, and it has {counted(facts.basic.donors, 'hydrogen-bond donor')} and "
        f"{counted(facts.basic.acceptors, 'acceptor')}."
    )


def _flexibility(facts: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("Is the molecule rigid or flexible?", "How flexible is it?"))
    share = facts.rotatable_bonds / max(1, facts.basic.heavy_atoms)
    lead = "Rigid" if share < 0.1 else "Rather flexible" if share > 0.25 else "Neither rigid nor very flexible"
    return ask, (
        f"{lead}: it has {counted(facts.rotatable_bonds, 'rotatable bond')} among "
        f"{facts.basic.heavy_atoms} heavy atoms and {counted(facts.rings, 'ring')}."
    )


_ACIDS = ("carboxylic acid", "sulfonic acid", "phosphate", "phosphonate", "phenol", "hydroxamic acid", "boronic acid")
_BASES = ("primary amine", "secondary amine", "tertiary amine", "guanidine", "amidine")


def _acidity(facts: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("Is it an acid or a base?", "Would you expect it to be acidic or basic?"))
    acids, bases = ([name for name in names if name in facts.basic.groups] for names in (_ACIDS, _BASES))
    if acids and bases:
        return ask, f"Both parts are there: it has an acidic {acids[0]} group and a basic {bases[0]} group."
    if acids:
        return ask, f"Acidic, if anything: it has {article(f'{acids[0]} group')} and no simple basic amine."
    if bases:
        return ask, f"Basic, if anything: it has {article(f'{bases[0]} group')}."
    return ask, f"Neither is to be expected of its groups: it{_groups(facts)}"


PROPERTY = (_solubility, _hydrogen_bonding, _permeability, _drug_likeness, _flexibility, _acidity)


# comparison: every sentence says which molecule it is about

_FIRST, _SECOND, _BOTH = "The first molecule", "The second molecule", "Both molecules"


def _heavier(one: MoleculeFacts, two: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("Which of the two is heavier?", "How do their masses compare?"))
    masses = [round(facts.basic.weight, 1) for facts in (one, two)]
    lead = "They weigh the same." if masses[0] == masses[1] else (
        f"{_FIRST if masses[0] > masses[1] else _SECOND} is the heavier one."
    )  # fmt: skip
    return ask, f"{lead} {_FIRST} weighs {masses[0]:.1f} g/mol. {_SECOND} weighs {masses[1]:.1f} g/mol."


def _shared_groups(one: MoleculeFacts, two: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("Which functional groups do they share?", "What do their functional groups have in common?"))
    shared = [name for name in one.basic.groups if name in two.basic.groups]
    if not shared:
        return ask, f"They have none in common. {_FIRST}{_groups(one)} {_SECOND}{_groups(two)}"
    return ask, f"{_BOTH} have {article(f'{shared[0]} group') if len(shared) == 1 else f'{listed(shared)} groups'}."


def _differing_groups(one: MoleculeFacts, two: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("Which functional groups does only one of them have?", "How do their functional groups differ?"))
    told = []
    for subject, mine, other in ((_FIRST, one, two), (_SECOND, two, one)):
        own = [name for name in mine.basic.groups if name not in other.basic.groups]
        if own:
            alone = article(f"{own[0]} group") if len(own) == 1 else f"{listed(own)} groups"
            told.append(f"{subject} alone has {alone}.")
    return ask, " ".join(told) or f"They do not differ in that. {_BOTH.replace('Both', 'The two')} have the same ones."


def _more_rings(one: MoleculeFacts, two: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("Which one has more rings?", "Compare their rings."))
    return ask, f"{_FIRST} has {counted(one.rings, 'ring')}. {_SECOND} has {counted(two.rings, 'ring')}."


def _more_polar(one: MoleculeFacts, two: MoleculeFacts, rng: random.Random) -> Turn:
    ask = rng.choice(("Which of them is more polar?", "Which one should prefer water?"))
    parts = [
        f"{subject} has a Crippen logP of {facts.logp:.2f} and a polar surface area of {facts.surface:.1f} Å²."
        for subject, facts in ((_FIRST, one), (_SECOND, two))
    ]
    more = _FIRST if one.logp < two.logp else _SECOND
    return ask, f"{' '.join(parts)} By logP, {more.lower()} should prefer water."


def _same_fact(one: MoleculeFacts, two: MoleculeFacts, rng: random.Random) -> Turn:
    topic = rng.choice(TOPICS)
    told = [f"{subject}{topic.predicate(facts.basic, rng)}" for subject, facts in ((_FIRST, one), (_SECOND, two))]
    return f"Compare their {topic.name}.", " ".join(told)


COMPARISON = (_heavier, _shared_groups, _differing_groups, _more_rings, _more_polar, _same_fact)


# correction: something false is taken for granted


def _wrong_group(facts: MoleculeFacts, rng: random.Random) -> Turn:
    name = rng.choice([name for name in FUNCTIONAL_GROUPS if name not in facts.basic.groups])
    ask = rng.choice((
        f"What does the {name} group of this molecule do to its reactivity?",
        f"Where in the molecule is the {name} group?",
        f"Since it has {article(f'{name} group')}, how would you protect it?",
    ))  # fmt: skip
    lead = rng.choice(
        ("Actually, it has no {} group.", "I see no {} group in it.", "That is a mistake: there is no {} group.")
    )
    return ask, f"{lead.format(name)} It{_groups(facts)}"


def _wrong_rings(facts: MoleculeFacts, rng: random.Random) -> Turn:
    wrong = facts.rings + rng.choice((1, 2)) if facts.rings < 2 or rng.random() < 0.5 else facts.rings - 1
    ask = f"Why does it need {counted(wrong, 'ring')}?"
    if not facts.rings:
        return ask, "It has no rings: the molecule is acyclic."
    return ask, f"That is not the number: it has {counted(facts.rings, 'ring')}."


def _wrong_charge(facts: MoleculeFacts, rng: random.Random) -> Turn:
    wrong = rng.choice([charge for charge in (-2, -1, 1, 2) if charge != facts.basic.charge])
    ask = f"Which counterion would balance its charge of {wrong:+d}?"
    if facts.basic.charge == 0:
        return ask, "None is needed: as drawn, it has no net charge."
    return ask, f"Not that one: as drawn, it has a net charge of {facts.basic.charge:+d}."


def _wrong_element(facts: MoleculeFacts, rng: random.Random) -> Turn | None:
    absent = [name for symbol, name in ELEMENT_NAMES.items() if symbol not in facts.basic.elements]
    if not absent:
        return None
    name = rng.choice(absent)
    there = Counter({ELEMENT_NAMES.get(symbol, symbol): count for symbol, count in facts.basic.elements.items()})
    told = [f"{count} {element}" for element, count in sorted(there.items())]
    return f"How is the {name} atom bound?", f"It contains no {name}. It has {listed(told)} atoms."


def _wrong_aromaticity(facts: MoleculeFacts, rng: random.Random) -> Turn:
    if facts.basic.aromatic:
        count = facts.aromatic_rings
        rings = f", with {count} aromatic ring{'s' * (count != 1)}" if count else ""
        return "Why is there nothing aromatic in it?", f"But there is: it is aromatic{rings}."
    return "Which of its rings are aromatic?", f"None: it is not aromatic, and it has {counted(facts.rings, 'ring')}."


CORRECTION: tuple[Callable[[MoleculeFacts, random.Random], Turn | None], ...] = (
    _wrong_group, _wrong_group, _wrong_rings, _wrong_charge, _wrong_element, _wrong_aromaticity,
)  # fmt: skip


# unknown: what no structure tells

UNKNOWN = (
    ("its melting point", "What is its melting point?"),
    ("its boiling point", "At what temperature does it boil?"),
    ("its price", "What does a gram of it cost?"),
    ("its suppliers", "Which company sells it?"),
    ("its history", "Who made it first, and when?"),
    ("a dose", "What dose is safe for an adult?"),
    ("its colour", "Which colour do its crystals have?"),
    ("its taste", "What does it taste like?"),
    ("its smell", "What does it smell like?"),
    ("patents on it", "Is it covered by a patent?"),
    ("its registry number", "What is its CAS number?"),
    ("its crystal structure", "Which space group do its crystals have?"),
    ("a measured NMR spectrum", "At what shift is its strongest NMR signal, as measured?"),
    ("its half-life in blood", "How long does it stay in the blood?"),
    ("its yearly production", "How many tonnes of it are made every year?"),
    ("its density", "What is its density at room temperature?"),
    ("its measured pKa", "What pKa has been measured for it?"),
    ("its optical rotation", "What is its optical rotation?"),
    ("its safety record", "Have there been accidents with it?"),
    ("its patients", "Which patients take it?"),
)
REFUSALS = (
    "A structure alone does not tell {}, and I would not guess.",
    "I cannot know {} from the structure.",
    "That cannot be read off a structure: {} would have to be looked up or measured.",
    "The structure says nothing about {}.",
)
