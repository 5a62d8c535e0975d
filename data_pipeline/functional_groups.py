"""Named functional groups and ring systems, found by SMARTS; the vocabulary of descriptions and of their scoring."""

import functools
import re

from rdkit import Chem

from data_pipeline.mol_graph import matches

# One line a group, in the order in which texts list them. The names are chosen so that "{name} group" reads well and
# no name is ambiguous; a SMARTS excludes what a more specific group covers (an ester's oxygen is no ether).
_GROUP_SMARTS = {
    "carboxylic acid": "[$([CX3H1]),$([CX3][#6])](=[OX1])[OX2H1]",
    "carboxylate": "[$([CX3H1]),$([CX3][#6])](=[OX1])[OX1-]",
    "acid anhydride": "[CX3](=[OX1])[OX2][CX3]=[OX1]",
    "acyl halide": "[CX3](=[OX1])[F,Cl,Br,I]",
    "ester": "[$([CX3H1]),$([CX3][#6])](=[OX1])[OX2][#6;!$([#6]=[O,S,N])]",
    "thioester": "[CX3](=[OX1])[SX2][#6]",
    "imide": "[CX3](=[OX1])[NX3][CX3](=[OX1])",
    "hydroxamic acid": "[$([CX3H1]),$([CX3][#6])](=[OX1])[NX3][OX2H1]",
    "hydrazide": "[$([CX3H1]),$([CX3][#6])](=[OX1])[NX3][NX3]",
    "amide": "[$([CX3H1]),$([CX3][#6])](=[OX1])[NX3;!$(N(C=O)C=O);!$(N[#7,#8])]",
    "urea": "[NX3][CX3](=[OX1])[NX3]",
    "carbamate": "[NX3][CX3](=[OX1])[OX2][#6]",
    "carbonate": "[OX2][CX3](=[OX1])[OX2]",
    "thioamide": "[#6][CX3](=[SX1])[NX3]",
    "thiourea": "[NX3][CX3](=[SX1])[NX3]",
    "guanidine": "[NX3][CX3](=[NX2])[NX3]",
    "amidine": "[#6][CX3](=[NX2])[NX3]",
    "isocyanate": "[NX2]=[CX2]=[OX1]",
    "isothiocyanate": "[NX2]=[CX2]=[SX1]",
    "aldehyde": "[CX3H1,CX3H2](=[OX1])[#6,#1,H]",
    "ketone": "[#6][CX3](=[OX1])[#6]",
    "nitrile": "[CX2]#[NX1]",
    "oxime": "[CX3]=[NX2][OX2]",
    "hydrazone": "[CX3]=[NX2][NX3]",
    "imine": "[CX3;!$(C[N,O,S])]=[NX2;!$(N[N,O])]",
    "nitro": "[#6][$([NX3](=O)=O),$([NX3+](=O)[O-])]",
    "nitrate ester": "[OX2][NX3+](=O)[O-]",
    "azide": "[NX2]=[NX2+]=[NX1-]",
    "azo": "[#6][NX2]=[NX2][#6]",
    "hydrazine": "[NX3;!$(N[C,S,P]=[O,S,N])][NX3;!$(N[C,S,P]=[O,S,N]);!$(N=*)]",
    "primary amine": "[NX3;H2;!$(N[#6,#15,#16]=[O,S,N]);!$(NC#N)][#6;!$([#6]=[N,O,S])]",
    "secondary amine": "[NX3;H1;!$(N[C,S,P]=[O,S,N]);!$(NC#N)]([#6])[#6]",
    "tertiary amine": "[NX3;H0;!$(N[C,S,P]=[O,S,N]);!$(NC#N)]([#6])([#6])[#6]",
    "ammonium": "[NX4+;!H0]",
    "quaternary ammonium": "[NX4+;H0]([#6])([#6])([#6])[#6]",
    "phenol": "[OX2H1]c",
    "enol": "[OX2H1][CX3]=[CX3]",
    "hemiacetal": "[OX2H1][CX4;!$(C(O)(O)O)][OX2][#6]",
    "alcohol": "[OX2H1][CX4;!$(C([OX2H1])[OX2][#6])]",
    "epoxide": "[CX4]1[OX2][CX4]1",
    "acetal": "[#6][OX2][CX4][OX2][#6]",
    "ether": "[OX2;!r3;!$(O[CX4][OX2]);!$(O[#6]=[O,S,N])]([#6])[#6]",
    "peroxide": "[OX2][OX2]",
    "thiol": "[SX2H1]",
    "disulfide": "[SX2][SX2]",
    "thioether": "[SX2]([#6;!$([#6]=[O,S])])[#6;!$([#6]=[O,S])]",
    "sulfoxide": "[$([SX3]=[OX1]),$([SX3+][OX1-])]([#6])[#6,S]",
    "sulfone": "[SX4](=[OX1])(=[OX1])([#6])[#6]",
    "sulfonamide": "[SX4](=[OX1])(=[OX1])([#6])[#7X3]",
    "sulfonic acid": "[SX4](=[OX1])(=[OX1])([#6])[OX2H1]",
    "sulfonate": "[SX4](=[OX1])(=[OX1])([#6])[OX1-,$([OX2][#6])]",
    "sulfate": "[SX4](=[OX1])(=[OX1])([OX2,OX1-])[OX2,OX1-]",
    "phosphate": "[PX4](=[OX1])([OX2,OX1-])([OX2,OX1-])[OX2,OX1-]",
    "phosphonate": "[PX4](=[OX1])([OX2,OX1-])([OX2,OX1-])[#6]",
    "phosphine": "[PX3]([#6])([#6])[#6]",
    "boronic acid": "[BX3]([OX2H1])[OX2H1]",
    "trifluoromethyl": "[CX4](F)(F)F",
    "fluoro": "[#6;!$([CX4](F)(F)F)]F",
    "chloro": "[#6;!$([CX3]=O)]Cl",
    "bromo": "[#6;!$([CX3]=O)]Br",
    "iodo": "[#6;!$([CX3]=O)]I",
    "alkene": "[CX3]=[CX3]",
    "alkyne": "[CX2]#[CX2]",
}
FUNCTIONAL_GROUPS = tuple(_GROUP_SMARTS)
"""Names of the known functional groups, in the order in which descriptions list them."""

# Ring systems by the SMARTS of all their atoms; hydrogens, substituents and exocyclic double bonds do not matter.
_RING_SMARTS = {
    "benzene": "c1ccccc1",
    "pyridine": "c1ccncc1",
    "pyrimidine": "c1cncnc1",
    "pyrazine": "c1cnccn1",
    "pyridazine": "c1ccnnc1",
    "triazine": "c1ncncn1",
    "pyrrole": "c1ccc[#7]1",
    "furan": "c1ccco1",
    "thiophene": "c1cccs1",
    "imidazole": "c1cncn1",
    "pyrazole": "c1ccnn1",
    "oxazole": "c1cnco1",
    "isoxazole": "c1ccno1",
    "thiazole": "c1cncs1",
    "triazole": "[$(c1ncnn1),$(c1cnnn1)]1~[#6,#7]~[#6,#7]~[#6,#7]~[#6,#7]~1",
    "tetrazole": "c1nnnn1",
    "naphthalene": "c1ccc2ccccc2c1",
    "indole": "c1ccc2nccc2c1",
    "benzofuran": "c1ccc2occc2c1",
    "benzothiophene": "c1ccc2sccc2c1",
    "benzimidazole": "c1ccc2ncnc2c1",
    "quinoline": "c1ccc2ncccc2c1",
    "isoquinoline": "c1ccc2cnccc2c1",
    "purine": "c1ncnc2ncnc12",
    "cyclopropane": "C1CC1",
    "cyclobutane": "C1CCC1",
    "cyclopentane": "C1CCCC1",
    "cyclohexane": "C1CCCCC1",
    "cyclohexene": "C1CCCC=C1",
    "azetidine": "C1CNC1",
    "pyrrolidine": "C1CCNC1",
    "piperidine": "C1CCNCC1",
    "piperazine": "C1CNCCN1",
    "morpholine": "C1COCCN1",
    "tetrahydrofuran": "C1CCOC1",
    "tetrahydropyran": "C1CCOCC1",
    "oxirane": "C1CO1",
    "dioxane": "C1COCCO1",
    "anthracene": "c1ccc2cc3ccccc3cc2c1",
}
RING_SYSTEMS = tuple(_RING_SMARTS)
"""Names of the known ring systems; other ring systems are described by their size."""


@functools.cache
def _patterns() -> dict[str, Chem.Mol]:
    return {name: Chem.MolFromSmarts(smarts) for name, smarts in _GROUP_SMARTS.items()}


@functools.cache
def _ring_patterns() -> dict[int, list[tuple[str, Chem.Mol]]]:
    by_size: dict[int, list[tuple[str, Chem.Mol]]] = {}
    for name, smarts in _RING_SMARTS.items():
        pattern = Chem.MolFromSmarts(smarts)
        by_size.setdefault(pattern.GetNumAtoms(), []).append((name, pattern))
    return by_size


def functional_groups(mol: Chem.Mol) -> dict[str, int]:
    """Group name → number of occurrences, for the groups that `mol` has, in the order of FUNCTIONAL_GROUPS."""
    found = {}
    for name, pattern in _patterns().items():
        count = len(matches(mol, pattern))
        if count:
            found[name] = count
    return found


def ring_systems(mol: Chem.Mol) -> list[str]:
    """A phrase for each ring system (rings that share atoms), in order of the first atom, such as "benzene ring"."""
    systems: list[set[int]] = []
    for ring in map(set, Chem.GetSymmSSSR(mol)):
        joined = [system for system in systems if system & ring]
        systems = [system for system in systems if not system & ring]
        systems.append(ring.union(*joined))
    return [_ring_phrase(mol, system) for system in sorted(systems, key=min)]


def has_ring(mol: Chem.Mol, name: str) -> int:
    """How many times a ring system of RING_SYSTEMS occurs, also as a part of a larger one (benzene in naphthalene)."""
    pattern = next(pattern for named in _ring_patterns().values() for known, pattern in named if known == name)
    return len(matches(mol, pattern))


def has_ring_of_class(mol: Chem.Mol, name: str) -> int:
    """How many rings of a class there are, as in "a member of isoquinolines": partly hydrogenated ones too.

    A ring without heteroatom has to be the ring itself; a saturated one belongs to no class of aromatic rings.
    """
    pattern = _skeletons().get(name)
    if pattern is None:
        return has_ring(mol, name)
    unsaturated = {
        atom.GetIdx()
        for bond in mol.GetBonds()
        if bond.GetIsAromatic() or bond.GetBondType() == Chem.BondType.DOUBLE
        if bond.IsInRing()
        for atom in (bond.GetBeginAtom(), bond.GetEndAtom())
    }
    return sum(len(unsaturated.intersection(match)) > 1 for match in matches(mol, pattern))


@functools.cache
def _skeletons() -> dict[str, Chem.Mol]:
    """The aromatic heterocycles with bonds of any kind; triazole, which has two forms, is left out."""
    skeletons = {}
    for name, smarts in _RING_SMARTS.items():
        elements = set(re.findall(r"[a-z]|#7", smarts))
        if smarts.startswith("c") and elements > {"c"}:
            generic = Chem.RWMol(Chem.MolFromSmarts(smarts))
            for atom in generic.GetAtoms():
                generic.ReplaceAtom(atom.GetIdx(), Chem.AtomFromSmarts(f"[#{atom.GetAtomicNum()};R]"))
            for bond in generic.GetBonds():
                generic.ReplaceBond(bond.GetIdx(), Chem.BondFromSmarts("~"))
            skeletons[name] = generic.GetMol()
    return skeletons


def _ring_phrase(mol: Chem.Mol, atoms: set[int]) -> str:
    for name, pattern in _ring_patterns().get(len(atoms), ()):
        if any(set(match) == atoms for match in matches(mol, pattern)):
            return f"{name} ring"
    count = sum(set(ring) <= atoms for ring in mol.GetRingInfo().AtomRings())
    aromatic = all(mol.GetAtomWithIdx(atom).GetIsAromatic() for atom in atoms)
    kind = "aromatic" if aromatic else "non-aromatic"
    if count == 1:
        return f"{len(atoms)}-membered {kind} ring"
    return f"{count}-ring {'aromatic' if aromatic else 'fused'} system"


@functools.cache
def _mention_pattern() -> re.Pattern[str]:
    # Longest first, so that "quaternary ammonium" is not read as "ammonium".
    names = sorted(FUNCTIONAL_GROUPS, key=len, reverse=True)
    return re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, names)) + r")s?(?![\w-])")


def mentioned_groups(text: str) -> set[str]:
    """Names of the functional groups that a text mentions, read as whole words, longest name first.

    >>> sorted(mentioned_groups("A primary amine, beside two esters and a quaternary ammonium."))
    ['ester', 'primary amine', 'quaternary ammonium']
    """
    return set(_mention_pattern().findall(text.lower()))
