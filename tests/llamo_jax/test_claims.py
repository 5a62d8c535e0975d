"""The checker of claims against what a reader finds in 300 descriptions of ChEBI-20.

claims_labels.tsv names, for each row of the corpus' validation split, the molecule with which its text is checked (its
own; from row 200 on that of the row a hundred before, so that there is something false to find) and every claim that
the text makes of a thing with a name in data_pipeline.functional_groups, an element or a count: read sentence by
sentence, and judged by the structure. `!` marks a false claim, `?` one on which readers may differ, which counts for
neither side. Names are the vocabulary's ("a carboxy group" is carboxylic acid, "an organic sulfide" thioether,
"organochlorine" chlorine); `=2` follows where the text counts; a plural ("a member of pyridines") is the class, to
which partly hydrogenated rings belong.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import pytest

from llamo_jax.evaluation.claims import Claim, Molecule, claims_in

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
LABELS = Path(__file__).parent / "claims_labels.tsv"


class Verdict(NamedTuple):
    row: int
    name: str
    true: bool


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def _named(claim: Claim) -> str:
    name = claim.name.partition(":")[2] or claim.name
    return f"{name}={claim.number}" if claim.number else name


def _labelled(labels: list[dict[str, str]]) -> tuple[set[Verdict], set[tuple[int, str]]]:
    verdicts, undecided = set(), set()
    for row, label in enumerate(labels):
        for claim in filter(None, label["claims"].split("; ")):
            if claim.startswith("?"):
                undecided.add((row, claim[1:]))
            else:
                verdicts.add(Verdict(row, claim.removeprefix("!"), not claim.startswith("!")))
    return verdicts, undecided


@pytest.mark.parametrize(
    ("text", "smiles", "verdicts"),
    [
        ("In which the phenol group is replaced by a methoxy group.", "COc1ccc(C)cc1", {"methoxy": True}),
        ("It is a member of isoquinolines.", "C1CNCc2ccccc12", {"isoquinolines": True}),
        ("It is a member of pyridines.", "C1CCNCC1", {"pyridines": False}),
        ("It has an isoquinoline ring.", "C1CNCc2ccccc12", {"isoquinoline": False}),
        ("It is an isoquinoline alkaloid.", "C1CNCc2ccccc12", {}),
        ("Dicarboxylic acid, 2-hydroxy fatty acid.", "O=C(O)CCC(=O)O", {"carboxylic acid=2": True, "hydroxy": False}),
        ("A dicarboxylic acid monoester.", "COC(=O)CC(=O)O", {"ester=1": True}),
        ("It is a tricarboxylic acid anion.", "[O-]C(=O)CC([O-])=O", {"carboxylate=3": False}),
        ("It has no amide group.", "O=C1CCC(=O)N1", {"amide": True}),
        ("An imide and a cyclic ketone.", "O=c1ccoc2ccccc12", {"imide": False, "ketone": True}),
        ("A phosphate monoester.", "COP(=O)(O)O", {"phosphate": True, "ester=1": True}),
        ("One of the amino groups of it; the acyl group has 21 carbons.", "C", {}),
        ("A bis(azo) compound, an enol ether, an organochlorine compound.", "C=COCCl",
         {"azo=2": False, "ether": True, "chlorine": True}),
        ("A secondary amino compound.", "CCN", {"secondary amine": False}),
        ("It weighs 180.2 g/mol, or 180.159 Da; a mass of 180.04 is its monoisotopic one.", ASPIRIN,
         {"mass=180.2": True, "mass=180.159": True, "mass=180.04": True}),
        ("It weighs 181.2 g/mol. It has 4 rotatable bonds and 13 heavy atoms.", ASPIRIN,
         {"mass=181.2": False, "rotatable bonds=4": False, "heavy atoms=13": True}),
        ("Its polar surface area is 63.6 Å²; its Crippen logP is 1.31; it violates none of Lipinski's rules.", ASPIRIN,
         {"polar surface area=63.6": True, "Crippen logP=1.31": True, "Lipinski violations": True}),
        ("It has 2 (R)-configured stereocentres and 1 S stereocentre.", "C[C@H](O)[C@@H](C)N",
         {"R stereocentres=2": False, "S stereocentres=1": True}),
        ("It has one E double bond and is achiral. It is not charged.", "C/C=C/C(=O)[O-]",
         {"E double bonds=1": True, "stereocentres": True, "charge": False}),
        ("It is negatively charged and has 2 aromatic rings.", "[O-]C(=O)c1ccccc1",
         {"charge=negative": True, "aromatic rings=2": False}),
        ("A lactone ring and a chromone ring; amino functional groups, a cyano functional group.", "NC1CC(=O)O1",
         {"lactone": True, "amino": True, "nitrile": False}),
        ("It has two rings and no functional groups.", "C1CCCCC1", {"rings=2": False, "functional groups": True}),
        ("It has the formula H2SO4.", "OS(=O)(=O)O", {"formula=H2SO4": True}),
        ("It has the formula H3SO4.", "OS(=O)(=O)O", {"formula=H3SO4": False}),
        ("It has the formula NH4+.", "[NH4+]", {"formula=NH4+": True}),
        ("It has the formula NH4.", "[NH4+]", {"formula=NH4": False}),
        ("It is positively charged.", "[O-]C(=O)c1ccccc1", {"charge=positive": False}),
        ("It is negatively charged.", "C[NH3+]", {"charge=negative": False}),
        ("It violates none of Lipinski's rules.", "Cn1c(=O)c2c(ncn2C)n(C)c1=O", {"Lipinski violations": True}),
        ("It violates two of Lipinski's rules.",
         "OC[C@H]1O[C@@](CO)(O[C@H]2O[C@H](CO)[C@@H](O)[C@H](O)[C@H]2O)[C@@H](O)[C@@H]1O",
         {"Lipinski violations=2": True}),
        ("A methoxy group and a gamma-lactone.", "CCOC(C)=O", {"methoxy": False, "lactone": False}),
    ],
)  # fmt: skip
def test_what_texts_mean(text, smiles, verdicts):
    molecule = Molecule(smiles)
    assert {_named(claim): molecule.has(claim) for claim in claims_in(text)} == verdicts


def test_verdicts_are_those_of_a_reader(shared_data):
    rows = {row["CID"]: row for row in _rows(shared_data / "chebi20" / "valid.tsv")}
    labels = _rows(LABELS)
    assert len(labels) == 300
    expected, undecided = _labelled(labels)
    assert len(expected) > 300
    assert sum(not verdict.true for verdict in expected) > 50

    found = set()
    for row, label in enumerate(labels):
        molecule = Molecule(rows[label["molecule"]]["SMILES"])
        for claim in claims_in(rows[label["text"]]["description"]):
            if (row, _named(claim)) not in undecided:
                found.add(Verdict(row, _named(claim), molecule.has(claim)))
    right = len(found & expected)
    differing = sorted(found ^ expected)
    print(f"{len(expected)} verdicts; precision {right / len(found):.3f}, recall {right / len(expected):.3f}")
    assert right / len(found) >= 0.97, differing  # precision
    assert right / len(expected) >= 0.97, differing  # recall
