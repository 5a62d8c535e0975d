"""What a text claims about its molecule, checked with RDKit: groups, rings, elements, counts, charge, mass, stereo.

Only statements about what the molecule has are read. What it was made from or derives from ("obtained by the formal
condensation of the carboxy group of …", "the conjugate base of …") is left out up to the sentence's end, what was
replaced ("in which the hydroxy group is replaced by …") up to what is there instead, and so is whatever has no name in
data_pipeline.functional_groups. tests/llamo_jax/test_claims.py holds the verdicts against those of a reader.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from rdkit import Chem
from rdkit.Chem import rdCIPLabeler, rdMolDescriptors

from data_pipeline.describe import Facts, facts_of
from data_pipeline.functional_groups import FUNCTIONAL_GROUPS, RING_SYSTEMS, has_ring, has_ring_of_class
from data_pipeline.guard import tried
from data_pipeline.mol_graph import matches
from data_pipeline.molecule import parse_smiles

GROUP, RING, ELEMENT, COUNT = KINDS = ("group", "ring", "element", "count")
CLAIMABLE = (GROUP, RING, ELEMENT)


class Claim(NamedTuple):
    """One statement: that something is there (number None), not there (number 0), or there so many times.

    kind: one of KINDS; a count of groups, rings or atoms has the kind "count", as have formula, charge and the like.
    number: of a measured quantity (a mass) as the text writes it, whose last digit tells how exact it is meant.
    words: how the text says it.
    """

    kind: str
    name: str
    number: int | str | None
    words: str


_CARBONYL = ("ketone", "aldehyde", "amide", "ester", "imide", "urea", "carbamate", "thioester", "acyl halide",
             "acid anhydride", "carbonate", "hydrazide", "hydroxamic acid")  # fmt: skip
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "hydroxy": ("alcohol", "phenol", "enol", "hemiacetal", "hydroxamic acid", "oxime"),
    "methoxy": ("ether", "ester", "acetal", "carbamate", "carbonate"),
    "lactam": ("amide", "imide", "urea", "carbamate"),
    "lactone": ("ester",),
    "oxo": _CARBONYL,
    "carbonyl": (*_CARBONYL, "carboxylic acid", "carboxylate"),
    "carboxy": ("carboxylic acid", "carboxylate"),
    "amine": ("primary amine", "secondary amine", "tertiary amine"),
    "amino": ("primary amine", "secondary amine", "tertiary amine", "ammonium"),
}
"""Names of texts that stand for one of several groups, or cover them."""
_SPELLINGS = {"hydroxyl": "hydroxy", "carboxyl": "carboxy", "cyano": "nitrile",
              "cyanide": "nitrile", "acid halide": "acyl halide", "carboxamide": "amide", "sulfide": "thioether",
              "epoxy": "epoxide", "primary amino": "primary amine", "secondary amino": "secondary amine",
              "tertiary amino": "tertiary amine"}  # fmt: skip
_WIDER = {
    "hydroxy": "[OX2H1;$(O[#6;!$(C=O)]),$(O[#7])]",
    "methoxy": "[OX2][CH3]",
    "oxo": "[#6;!$([#6](=O)[OX2H1,OX1-])]=[OX1]",
    "carbonyl": "[#6]=[OX1]",
    "lactone": "[#6;R](=[OX1])[#8;R]",
    "lactam": "[#6;R](=[OX1])[#7;R]",
    # to a reader, what RDKit calls aromatic is a group too: the ketone of a chromone
    "ketone": "[#6][#6X3](=[OX1])[#6]",
    "amide": "[$([CX3H1]),$([#6X3][#6])](=[OX1])[#7X3]",
    "imide": "[#6](=[OX1])[#7X3][#6](=[OX1])",
    "urea": "[#7][#6X3](=[OX1])[#7]",
    "carbamate": "[#7][#6X3](=[OX1])[#8]",
    "carbonate": "[#8][#6X3](=[OX1])[#8]",
    # and texts name the kind: a carbamate ester, a phosphate monoester, a silyl ether, an iminium salt
    "ester": "[#6X3,PX4,SX4,$([NX3](=O)=O),$([NX3+](=O)[O-]),BX3](~[OX1])[#8X2][#6;!$([CX3]=[O,S,N])]",
    "ether": "[OX2;!r3;!$(O[#6]=[O,S])]([#6,#7,#14])[#6,#14]",
    "acetal": "[OX2][CX4][OX2]",
    "acid anhydride": "[#6,P,S](=[OX1])[OX2][#6,P,S]=[OX1]",
    "ammonium": "[#7+;!$([#7]~[OX1])]",
}
"""SMARTS of what texts mean by a name where that is no sum of groups, or wider than the group of that name."""

_ELEMENTS = {
    Chem.GetPeriodicTable().GetElementName(number).lower(): Chem.GetPeriodicTable().GetElementSymbol(number)
    for number in range(3, 104)
    if number not in (82,)  # "lead" is mostly a verb
}
_ELEMENTS |= {"sulphur": "S", "aluminum": "Al", "caesium": "Cs", "cesium": "Cs"}

_NUMBERS = {"no": 0, "none": 0, "zero": 0, "one": 1, "single": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6,
            "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12}  # fmt: skip
_NUMBER = r"(?<![\w.])(?P<number>\d+|" + "|".join(sorted(_NUMBERS, key=len, reverse=True)) + r")"
_PREFIXES = {"mono": 1, "di": 2, "tri": 3, "tetra": 4, "penta": 5, "hexa": 6}
_PREFIXED = ("carboxylic acid", "hydroxy", "amino", "methoxy", "nitro", "fluoro", "chloro", "bromo", "iodo", "ester",
             "ketone", "aldehyde", "amide", "nitrile")  # fmt: skip
"""What may follow such a prefix; of others it says something else (a disulfide, a diphosphate)."""
_LOCANT = r"(?:\d+'*(?:alpha|beta)?|alpha|beta|gamma|delta|omega|\(omega-\d\)|[CNOS])(?:,\d+'*)*-"

_ELSEWHERE = re.compile(
    r"\b(?:obtained|derive[sd]?|deriving|derivative of|result(?:s|ing)|formed|prepared|conjugate (?:base|acid)|formal"
    r"|functional parent|tautomer|enantiomer|transferred|deprotonation|protonation|deuterated|used|inhibit\w*"
    r"|would|could|might|hydrolysis|arising|metaboli[sz]\w*|synthes\w+|react\w*|role|found|isolated|rather than)\b"
    r".*?(?=\.\s|\.$|$)",
    re.IGNORECASE | re.DOTALL,
)
_CLAUSE = r"\b(?:in which|wherein|where|whose|of which)\b"
_REPLACED = re.compile(
    rf"{_CLAUSE}(?:(?!{_CLAUSE})[^.;])*?\b(?:replaced|substituted|converted|hydroly[sz]ed|acetylated|methylated"
    r"|oxidi[sz]ed|reduced|removed|undergone|lost)\b(?: (?:by|with|into|to))?",
    re.IGNORECASE,
)
_OF_A_PART = re.compile(
    r"\b(?:acyl|alkyl|alkenyl|side) (?:group|chain|residue)s? (?:ha(?:s|ve)|having|with|of|contain\w*)\b[^.;,]*",
    re.IGNORECASE,
)
"""What a part has ("the acyl group has 21 carbons") is no statement on the whole."""
_OF_THE_PARENT = re.compile(r"\b(?:of|from|on) (?:the|both|each|one)(?: \w+)? $", re.IGNORECASE)
_TURN = (
    r"\b(?:but|however|yet|although|though|while|whereas|instead|because|since|either|only|is|are|has|have|having|with"
    r"|contain(?:s|ing)?|bear(?:s|ing)?|includ(?:es?|ing)|features?|carr(?:y|ies|ying)|possess(?:es|ing)?)\b"
)
"""Words after which a negation is over."""
_REACH = rf"(?:(?!{_TURN})[^.,;:])*"
_NEGATION = re.compile(
    # a list goes on with bare names after "no", and with articles too after "lacks"
    r"(?:\b(?:no(?!,)|not(?! only)(?:\s+(?:have|contain|bear|include|possess|feature|carry|show))?|neither|nor)\b"
    rf"{_REACH}(?:,(?!\s*(?:(?:and|or|nor)\s+)?(?:an?|the|\d+)\b){_REACH})*"
    rf"|\bneither (?:one )?(?:is|are|has|have|contains?)\b{_REACH}"
    rf"|\b(?:without|lacks?|lacking|free of|devoid of)\b{_REACH}(?:,{_REACH})*)$",
    re.IGNORECASE,
)
_BEFORE = 200
"""Characters before a name in which its negation is looked for: a text without a full stop may be long."""


def claims_in(text: str) -> list[Claim]:
    """The claims of a text, each once.

    >>> [(claim.name, claim.number) for claim in claims_in("It has 2 ester groups and no ketone.")]
    [('group:ester', 2), ('ketone', 0)]
    """
    for unsaid in (_ELSEWHERE, _REPLACED, _OF_A_PART):
        text = unsaid.sub(" ", text)
    text = re.sub(r"\bbis\((\w+)\)", r"2 \1", text)
    claims = [*_named(text), *_counted(text)]
    return list(dict.fromkeys(claims))


def _named(text: str) -> Iterable[Claim]:
    for kind, pattern in _name_patterns().items():
        for match in pattern.finditer(text):
            name = _meant(kind, match, text)
            if name is None:
                continue
            count = _count(match)
            before = text[max(0, match.start() - _BEFORE) : match.start()]
            if kind == GROUP and _OF_THE_PARENT.search(before):
                continue
            if count is None and _NEGATION.search(before.rpartition(".")[2]):
                count = 0
            if count:
                yield Claim(COUNT, f"{kind}:{name}", count, match.group())
            else:
                yield Claim(kind, name, count, match.group())


def _meant(kind: str, match: re.Match[str], text: str) -> str | None:
    """The name that a match stands for; None if what follows makes it something else (an enol ether is no enol)."""
    name = (match["name"] or match["prefixed"]).lower()
    name = _SPELLINGS.get(name, name)
    after = text[match.end() : match.end() + 20].lower()
    if kind == ELEMENT and after[:1] == "–":  # a carbon–carbon bond
        return None
    if after.startswith(" is masked"):
        return None
    if name == "carboxylic acid":
        if re.match(r" (?:di|tri|tetra)?anion", after):
            return "carboxylate"
        return None if re.match(r" (?:(?:mono|di|tri)?(?:ester|amide)|monoanion)|s? and o-subst", after) else name
    if after.startswith(_OTHERWISE.get(kind if kind == RING else name, "\n")):
        return None
    is_class = kind == RING and match.group().lower().endswith("s") and not _count(match) and name != "aromatic ring"
    return f"{name}s" if is_class and match.group().lower().endswith(f"{name}s") else name


_OTHERWISE = {"enol": " ether", "nitrile": " oxide", "hydroxy": " radical", "thiol": " ester", RING: " alkaloid"}


def _count(match: re.Match[str]) -> int | None:
    if match.groupdict().get("prefix"):
        return _PREFIXES[match["prefix"].lower()]
    return _number(match["number"]) if match["number"] else None


_STEREOCENTRE = r"(?:stereo(?:genic )?|chiral )cent(?:re|er)s?"
_COUNTED = {
    "hydrogen-bond donors": rf"{_NUMBER} (?:hydrogen[- ]bond|H-bond) donors?",
    "hydrogen-bond acceptors": rf"{_NUMBER} (?:(?:hydrogen[- ]bond|H-bond) )?acceptors?",
    "stereocentres": rf"{_NUMBER} {_STEREOCENTRE}",
    "R stereocentres": rf"{_NUMBER} \(?R\)?(?:-configured)? {_STEREOCENTRE}",
    "S stereocentres": rf"{_NUMBER} \(?S\)?(?:-configured)? {_STEREOCENTRE}",
    "E double bonds": rf"{_NUMBER} \(?E\)?(?:-configured)? double bonds?",
    "Z double bonds": rf"{_NUMBER} \(?Z\)?(?:-configured)? double bonds?",
    "rings": rf"{_NUMBER} rings?\b",
    "aromatic rings": rf"{_NUMBER} aromatic rings?\b",
    "rotatable bonds": rf"{_NUMBER} rotatable bonds?",
    "heavy atoms": rf"{_NUMBER} (?:heavy|non-hydrogen) atoms?",
    "Lipinski violations": r"\bviolates (?P<number>none|\d+|one|two|three|four) of Lipinski",
    "functional groups": r"\b(?P<number>no) functional groups?",
    "charge": r"\bcharge (?:of|is) (?P<number>[-+\u2212]?\d+|zero)\b",
}
"""Other facts of RDKit and how texts count them."""

_DECIMAL = r"(?:about |approximately |roughly |~)?(?P<number>[-\u2212]?\d+(?:\.\d+)?)"
_QUANTITIES = {
    "mass": rf"\b(?:(?:weigh(?:s|ing)|mass of|weight of|mass is|weight is) {_DECIMAL}"
    r"|(?<![.\d])(?P<before>\d+(?:\.\d+)?)(?= (?:g/mol|daltons?|Da)\b))",
    "polar surface area": rf"\b(?:polar surface area|TPSA) (?:of|is) {_DECIMAL}",
    "Crippen logP": rf"\bCrippen logP (?:of|is) {_DECIMAL}",
}
"""What is measured, and how texts say it."""

# after "is" with a digit only: "is ATP" is a name
_FORMULA = re.compile(
    r"\b(?:formula(?: of| is|,)? |is (?=[A-Za-z]*\d))((?:[A-Z][a-z]?\d*){2,}(?:[-+]\d*)?)(?= |\.|,|$)"
)
_STATED = {
    r"\bis acyclic\b": (RING, "ring", 0),
    r"\bis aromatic\b": (RING, "aromatic ring", None),
    r"\bis not aromatic\b": (RING, "aromatic ring", 0),
    r"\bis (?:neutral|uncharged|not charged)\b|\bno net charge\b": (COUNT, "charge", 0),
    r"\bis positively charged\b": (COUNT, "charge", "positive"),
    r"\bis negatively charged\b": (COUNT, "charge", "negative"),
    rf"\bis chiral\b|\b(?:has|is|with) an? {_STEREOCENTRE}\b": (COUNT, "stereocentres", None),
    r"\bis (?:achiral|not chiral)\b": (COUNT, "stereocentres", 0),
}


_AT_MOST = re.compile(r"\b(?:(?:fewer|less|more) than|at (?:most|least)|up to|limit of) $", re.IGNORECASE)
_OF_NONE = re.compile(r"\b(?:none|neither|nothing)\b[^.;]*$", re.IGNORECASE)


def _counted(text: str) -> Iterable[Claim]:
    for name, pattern in _COUNTED.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            if _AT_MOST.search(text[max(0, match.start() - 20) : match.start()]):
                continue
            yield Claim(COUNT, name, _number(match["number"]), match.group())
    for pattern, (kind, name, count) in _STATED.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            if _OF_NONE.search(text[max(0, match.start() - 40) : match.start()]):
                continue
            yield Claim(kind, name, count, match.group())
    for name, pattern in _QUANTITIES.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            number = match["number"] or match["before"]
            yield Claim(COUNT, name, number.replace("\u2212", "-"), match.group())
    for match in _FORMULA.finditer(text):
        yield Claim(COUNT, "formula", match.group(1), match.group())


def _composition(formula: str) -> tuple[Counter[str], int]:
    """Atoms by element, and the charge: H2SO4 is written in another order than RDKit's."""
    found: Counter[str] = Counter()
    for element, count in re.findall(r"([A-Z][a-z]?|\*)(\d*)", re.sub(r"[-+].*", "", formula)):
        found[element] += int(count[:9] or 1)
    charge = re.search(r"([-+])(\d*)$", formula)
    return found, int(f"{charge[1]}{charge[2][:9] or 1}") if charge else 0


def _number(word: str) -> int:
    return _NUMBERS[word.lower()] if word.lower() in _NUMBERS else int(word.replace("\u2212", "-")[:9])


@functools.cache
def _name_patterns() -> dict[str, re.Pattern[str]]:
    """Kind → a pattern of its names, longest first: "quaternary ammonium" must not be read as "ammonium"."""

    def listed(names: Iterable[str]) -> str:
        return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))

    def pattern(names: str, after: str) -> re.Pattern[str]:
        number = rf"(?:\b{_NUMBER} )?(?<![\w-])(?:{_LOCANT})?"
        return re.compile(rf"{number}(?:{names})(?:s|es)?(?:{after})(?![\w-])", re.IGNORECASE)

    prefixed = listed([*_PREFIXED, *(name for name, meant in _SPELLINGS.items() if meant in _PREFIXED)])
    groups = listed([*FUNCTIONAL_GROUPS, *_SYNONYMS, *_SPELLINGS, *_WIDER])
    return {
        GROUP: pattern(
            rf"(?P<name>{groups})|(?P<prefix>{'|'.join(_PREFIXES)})(?P<prefixed>{prefixed})",
            # "amino acid" and the like name a class, whatever its nitrogen has become
            r"(?<!\bamino)(?: (?:functional )?groups?)?"
            r"|(?<=\bamino)(?: (?:(?:functional )?groups?|compounds?)|(?=,| and\b| or\b))",
        ),
        RING: pattern(rf"(?P<name>{listed(RING_SYSTEMS)})", r"(?: (?:ring|nucleus|moiety|core)s?)?"),
        ELEMENT: pattern(rf"(?:organo)?(?P<name>{listed(_ELEMENTS)})", r"(?: atoms?)?"),
    }


class Molecule:
    """A molecule against which claims are checked; raises InvalidMoleculeError."""

    def __init__(self, smiles: str):
        self._mol, self.facts = tried(_mol_and_facts, smiles)

    def has(self, claim: Claim) -> bool:
        """Whether a claim is true."""
        kind, _, name = claim.name.partition(":") if claim.kind == COUNT else (claim.kind, "", claim.name)
        if name and claim.number is None:
            return any(self._occurrences(kind, name))
        if name and claim.number == 0:
            return self._occurrences(kind, name)[0] == 0
        if name:
            return claim.number in self._occurrences(kind, name)
        if claim.name in _QUANTITIES:
            return any(_as_written(value, str(claim.number)) for value in self._measured(claim.name))
        if claim.name == "formula":
            return _composition(str(claim.number)) == _composition(self.facts.formula)
        there = self._counts(claim.name)
        if claim.name == "charge" and claim.number in ("positive", "negative"):
            return any((count > 0) == (claim.number == "positive") and count != 0 for count in there)
        return any(there) if claim.number is None else claim.number in there

    def _counts(self, name: str) -> tuple[Any, ...]:
        """What RDKit counts, in each of the ways that texts may mean."""
        mol, facts = self._mol, self.facts
        if name in ("R stereocentres", "S stereocentres"):
            return (cip_labels(mol, bonds=False).count(name[0]),)
        if name in ("E double bonds", "Z double bonds"):
            return (cip_labels(mol, bonds=True).count(name[0]),)
        return {
            "hydrogen-bond donors": lambda: (facts.donors,),
            "hydrogen-bond acceptors": lambda: (facts.acceptors,),
            "stereocentres": lambda: (facts.stereocentres,),
            "rings": lambda: (mol.GetRingInfo().NumRings(),),
            "aromatic rings": lambda: (rdMolDescriptors.CalcNumAromaticRings(mol),),
            "rotatable bonds": lambda: (rdMolDescriptors.CalcNumRotatableBonds(mol),),
            "heavy atoms": lambda: (facts.heavy_atoms,),
            "Lipinski violations": lambda: (lipinski_violations(mol, facts),),
            "functional groups": lambda: (len(facts.groups),),
            "charge": lambda: (facts.charge,),
        }[name]()

    def _measured(self, name: str) -> tuple[float, ...]:
        """The quantity, in each of the ways that texts may mean: average or monoisotopic mass, area with S and P."""
        if name == "mass":
            return self.facts.weight, rdMolDescriptors.CalcExactMolWt(self._mol)
        if name == "polar surface area":
            return tuple(rdMolDescriptors.CalcTPSA(self._mol, includeSandP=wide) for wide in (False, True))
        return (rdMolDescriptors.CalcCrippenDescriptors(self._mol)[0],)

    def claimable(self, kind: str) -> set[str]:
        """What of a kind (group, ring or element) there is to be named; carbon and hydrogen need not be."""
        if kind == GROUP:
            return set(self.facts.groups)
        if kind == RING:
            return {phrase.removesuffix(" ring") for phrase in self.facts.rings} & set(RING_SYSTEMS)
        symbols = set(self.facts.elements) - {"C"}
        return {name for name, symbol in _ELEMENTS.items() if symbol in symbols and name not in ("sulphur", "cesium")}

    def _occurrences(self, kind: str, name: str) -> tuple[int, ...]:
        """How many there are, by the narrowest meaning of the name first."""
        if kind == GROUP:
            strict = [self.facts.groups.get(name, 0)] if name in FUNCTIONAL_GROUPS else []
            if name in _WIDER:
                return (*strict, len(matches(self._mol, _wider(name))))
            return (sum(self.facts.groups.get(group, 0) for group in _SYNONYMS.get(name, (name,))),)
        if kind == ELEMENT:
            return (self.facts.elements.get(_ELEMENTS[name], 0),)
        if name == "ring":
            return (self._mol.GetRingInfo().NumRings(),)
        if name == "aromatic ring":
            return (int(self.facts.aromatic),)
        if name not in RING_SYSTEMS:
            return (has_ring_of_class(self._mol, name.removesuffix("s")),)
        # of a ring, texts count every occurrence, in larger systems too, or systems ("2 benzene rings")
        return (has_ring(self._mol, name), self.facts.rings.count(f"{name} ring"))


def _as_written(value: float, text: str) -> bool:
    """Whether a number is a value, rounded or cut to as many digits as it has; 1 in 10,000 for other atomic weights."""
    unit = 10.0 ** -len(text.partition(".")[2])
    return abs(float(text) - value) < unit + 1e-4 * abs(value)


def cip_labels(mol: Chem.Mol, *, bonds: bool) -> list[str]:
    """The CIP labels of double bonds (E, Z) or atoms (R, S, and others), by RDKit's newer, exact labeller.

    Of a molecule that is too much for it (symmetrical cages) none.
    """
    mol = Chem.Mol(mol)
    try:
        rdCIPLabeler.AssignCIPLabels(mol, maxRecursiveIterations=_MAX_CIP_ITERATIONS)
    except RuntimeError:
        return []
    labelled = mol.GetBonds() if bonds else mol.GetAtoms()
    return [each.GetProp("_CIPCode") for each in labelled if each.HasProp("_CIPCode")]


_MAX_CIP_ITERATIONS = 1_250_000  # about a second


def lipinski_violations(mol: Chem.Mol, facts: Facts) -> int:
    """Of four rules (Lipinski et al., 1997): mass > 500 g/mol, logP > 5 (Crippen's), NH and OH > 5, N and O > 10."""
    logp = rdMolDescriptors.CalcCrippenDescriptors(mol)[0]
    donors, acceptors = rdMolDescriptors.CalcNumLipinskiHBD(mol), rdMolDescriptors.CalcNumLipinskiHBA(mol)
    return sum((facts.weight > 500, logp > 5, donors > 5, acceptors > 10))


@functools.cache
def _wider(name: str) -> Chem.Mol:
    return Chem.MolFromSmarts(_WIDER[name])


def _mol_and_facts(smiles: str) -> tuple[Chem.Mol, Facts]:
    mol = parse_smiles(smiles)
    return mol, facts_of(mol)


class Checked(NamedTuple):
    """A description's claims: the true ones and the false ones; and what it could have named, and has, by kind."""

    true: list[Claim]
    false: list[Claim]
    there: dict[str, set[str]]
    named: dict[str, set[str]]


def check(description: str, smiles: str) -> Checked:
    """The claims of one description; raises InvalidMoleculeError."""
    molecule = Molecule(smiles)
    claims = claims_in(description)
    true = [claim for claim in claims if molecule.has(claim)]
    there = {kind: molecule.claimable(kind) for kind in CLAIMABLE}
    affirmed = {(claim.kind, name) for claim in claims if claim.number != 0 for name in names_of(claim)}
    affirmed |= {
        (kind, name)
        for claim in claims
        if claim.kind == COUNT and claim.number
        for kind, _, name in [claim.name.partition(":")]
    }
    named = {kind: {name for name in there[kind] if (kind, name) in affirmed} for kind in there}
    return Checked(true, [claim for claim in claims if claim not in true], there, named)


def names_of(claim: Claim) -> tuple[str, ...]:
    """What of the vocabulary a claim names: a class of rings its ring, a wide name the groups that it covers."""
    if claim.kind == RING and claim.name not in RING_SYSTEMS:
        return (claim.name.removesuffix("s"),)
    return _SYNONYMS.get(claim.name, (claim.name,))


def shown(claim: Claim) -> str:
    """A claim in words: "2 ester", "no ring"."""
    name = claim.name.partition(":")[2] or claim.name
    if claim.name in _QUANTITIES:
        return f"{name} {claim.number}"
    return f"no {name}" if claim.number == 0 else name if claim.number is None else f"{claim.number} {name}"
