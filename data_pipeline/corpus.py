"""The embedded corpus: some 6,000 molecules without any download, split by scaffold.

It starts from `known_molecules` and adds a deterministic enumeration: every scaffold below is decorated with one to
three substituents through reaction SMARTS. The same code gives the same corpus on every machine with the same RDKit.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from rdkit import Chem
from rdkit.Chem import rdChemReactions
from rdkit.Chem.Scaffolds import MurckoScaffold

from data_pipeline.known_molecules import known_molecules
from data_pipeline.molecule import parse_smiles, quiet_rdkit

CORPUS_VERSION = "1.0.0"
"""Raise when any molecule, text or split of the embedded corpus changes; prepared copies are keyed by it."""

CORPUS_SIZE = 6000
_HELD_OUT_FRACTION = 0.1
_LARGE_SCAFFOLD_FRACTION = 0.02

_SCAFFOLDS = """
c1ccccc1 c1ccncc1 c1cncnc1 c1cnccn1 c1ccnnc1 c1ccsc1 c1ccoc1 c1cscn1 c1cocn1 c1ccno1
c1ccc2ccccc2c1 c1ccc2ncccc2c1 c1ccc2cnccc2c1 c1ccc2occc2c1 c1ccc2sccc2c1 c1ccc2[nH]ccc2c1 c1ccc2[nH]cnc2c1
c1ccc2ncncc2c1 c1ccc2nccnc2c1 c1ccc2ocnc2c1 c1ccc2scnc2c1 c1ccc2c(c1)OCO2 c1ccc2c(c1)CCC2 c1ccc2c(c1)CCCC2
c1ccc2c(c1)CCN2 c1ccc2c(c1)CCNC2 c1ccc2c(c1)OCCO2 c1ccc(-c2ccccc2)cc1 c1ccc(Cc2ccccc2)cc1 c1ccc(-c2ccccn2)cc1
c1ccc(-c2cccs2)cc1 c1ccc(C2CCCCC2)cc1 c1ccc(Oc2ccccc2)cc1 c1ccc2cc3ccccc3cc2c1 c1c[nH]cn1 c1cn[nH]c1 c1cc[nH]c1
C1CCCC1 C1CCCCC1 C1CCCCCC1 C1CCC1 C1=CCCCC1 C1CCC2CCCCC2C1 C1CC2CCC1C2 C1CCNCC1 C1CCNC1 C1CNCCN1 C1COCCN1
C1CCOCC1 C1CCOC1 C1CCSC1 O=C1CCCCC1 O=C1CCCN1 O=C1CCCCN1 O=C1CCCO1 O=c1ccc2ccccc2o1 O=C1c2ccccc2C(=O)c2ccccc21
O=C1CCc2ccccc21 c1ccc2c(c1)[nH]c1ccccc12 c1cnc2[nH]ccc2c1 c1cnc2ncccc2c1 C1CC2CCCC(C1)C2 c1ccc(N2CCOCC2)cc1
c1ccc(N2CCNCC2)cc1 C(c1ccccc1)N1CCCCC1 CCCC CCCCCC CC(C)CC CCCCCCCC C=CCCC
C1CCSCC1 C1CSCCS1 C1CSCCN1 C1CSC1 c1ccc2c(c1)CCCS2 c1ccc2c(c1)CCS2 c1ccc(Sc2ccccc2)cc1 C1CCC2SCCC2C1
O=C1CCCC1 O=C1CCCCCC1 O=C1CCCc2ccccc21 O=C1CCOc2ccccc21 O=C1CCNCC1 O=C1CCOCC1 O=C1CC2CCC1C2 O=C1CCC2CCCCC2C1
O=C(C1CCCCC1)c1ccccc1 O=C1CCCCN1c1ccccc1 O=C1Cc2ccccc2N1 O=C1NCc2ccccc21 O=C1CCc2ccccc2N1 O=C1COCCN1 O=C1CCCCCN1
O=C1CCCCO1 O=C1OCc2ccccc21 O=C1CCc2ccccc2O1 C1COC1 C1CCC2OCCC2C1 c1ccc2c(c1)CCO2 c1ccc2c(c1)CCCO2 C1CNC1 C1CCCNCC1
C1CC2(CCC1)CCCC2 c1ccc(C2CC2)cc1 c1ccc(-c2ccco2)cc1 c1ccc(-c2ccncc2)cc1 c1ccc2[nH]ncc2c1 c1cc2ccccc2[nH]1 C1=CCCC1
""".split()

_SUBSTITUENTS = """
*C *CC *C(C)C *C(C)(C)C *c1ccccc1 *Cc1ccccc1 *O *CO *CCO *OC *OCC *CCOC *N *CN *CCN *NC *CNC *N(C)C *CN(C)C
*[N+](C)(C)C *C[NH3+] *F *Cl *Br *I *C(F)(F)F *C#N *CC#N *[N+](=O)[O-] *C=O *C(C)=O *CC(C)=O *C(=O)c1ccccc1 *C(=O)O
*CC(=O)O *OCC(=O)O *C(=O)[O-] *C(=O)OC *CC(=O)OCC *OC(C)=O *COC(C)=O *C(N)=O *C(=O)NC *NC(C)=O *C(=O)N(C)C *C(=O)Cl
*S *CS *SC *CSC *S(C)=O *S(C)(=O)=O *S(N)(=O)=O *S(=O)(=O)NC *S(=O)(=O)O *C=C *CC=C *C=CC(=O)O *C#C *CC#C *NC(N)=O
*NC(=O)OC *OC(=O)NC *CN=[N+]=[N-] *N=Nc1ccccc1 *B(O)O *OP(=O)(O)O *COP(=O)(O)O *NC(=N)N *CC1CO1 *CC(N)C(=O)O
""".split()

# A carbon of ring or chain that carries no heteroatom, or a ring nitrogen (which takes carbon substituents only).
_ON_CARBON = "[c,$([CX4;!$(C[!#6])]);!H0:1].[#0]-[*:2]>>[*:1]-[*:2]"
_ON_NITROGEN = "[NX3;R;!H0;!$(N[C,S]=O):1].[#0]-[#6:2]>>[*:1]-[*:2]"
_MAX_ATOMS = 40


class CorpusMolecule(NamedTuple):
    """name: common name, or "" for an enumerated molecule; smiles: canonical; split: train, validation or test."""

    name: str
    smiles: str
    split: str


def build_corpus(size: int = CORPUS_SIZE) -> list[CorpusMolecule]:
    """The known molecules and as many enumerated ones as `size` asks for, all distinct, with their splits."""
    names: dict[str, str] = {}
    for name, smiles in known_molecules().items():
        names.setdefault(Chem.MolToSmiles(parse_smiles(smiles)), name)
    per_scaffold = -(-(size - len(names)) // len(_SCAFFOLDS))
    generators = [_decorate(scaffold, per_scaffold * 2) for scaffold in _SCAFFOLDS]
    while len(names) < size and generators:  # one from each scaffold in turn, so that all are equally frequent
        for generator in tuple(generators):
            enumerated = next(generator, None)
            if enumerated is None:
                generators.remove(generator)
            elif len(names) < size:
                names.setdefault(enumerated, "")
    splits = scaffold_split(list(names))
    return [CorpusMolecule(name, smiles, split) for (smiles, name), split in zip(names.items(), splits, strict=True)]


def scaffold_split(smiles: list[str]) -> list[str]:
    """A split ("train", "validation" or "test") for each molecule; no Murcko scaffold is in two splits.

    Scaffolds are dealt out in the order of their hashes, a tenth of the molecules each to test and validation;
    scaffolds with more than 2 % of all molecules (acyclic ones count as one scaffold) go to train.
    """
    scaffolds = [murcko_scaffold(text) for text in smiles]
    counts = Counter(scaffolds)
    chosen = {scaffold: "train" for scaffold in counts}
    held_out = Counter[str]()
    for scaffold in sorted(counts, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if scaffold == "" or counts[scaffold] > _LARGE_SCAFFOLD_FRACTION * len(smiles):
            continue
        for split in ("test", "validation"):
            if held_out[split] < _HELD_OUT_FRACTION * len(smiles):
                chosen[scaffold] = split
                held_out[split] += counts[scaffold]
                break
    return [chosen[scaffold] for scaffold in scaffolds]


def murcko_scaffold(smiles: str) -> str:
    """Canonical SMILES of the Murcko scaffold without stereochemistry; "" for an acyclic molecule."""
    with quiet_rdkit():
        return MurckoScaffold.MurckoScaffoldSmiles(smiles=smiles, includeChirality=False)


def _decorate(scaffold: str, count: int) -> Iterator[str]:
    """Canonical SMILES of the scaffold with one, two or three substituents, in a reproducible order."""
    core = Chem.MolFromSmiles(scaffold)
    substituents = [Chem.MolFromSmiles(text) for text in _SUBSTITUENTS]
    reactions = [rdChemReactions.ReactionFromSmarts(text) for text in (_ON_CARBON, _ON_NITROGEN)]
    rng = random.Random(f"llamo_jax corpus {scaffold}")
    for _ in range(count):
        mol = core
        for substituent in rng.choices(substituents, k=rng.choice((1, 1, 2, 2, 3))):
            products = [p for reaction in reactions for p in reaction.RunReactants((mol, substituent))]
            if products:
                mol = _sanitized(rng.choice(products)[0]) or mol
        if mol is not core and mol.GetNumAtoms() <= _MAX_ATOMS:
            yield Chem.MolToSmiles(mol)


def _sanitized(mol: Chem.Mol) -> Chem.Mol | None:
    with quiet_rdkit():  # a refused product is skipped, not reported
        try:
            Chem.SanitizeMol(mol)
        except Chem.MolSanitizeException:
            return None
    return mol
