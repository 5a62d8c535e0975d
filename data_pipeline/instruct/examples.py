"""Conversations of our own writing that requests show to teachers; tests hold them to the checks of the output."""

from typing import NamedTuple


class Example(NamedTuple):
    """smiles: the molecules; turns: the user's and the assistant's, in alternation."""

    kind: str
    smiles: tuple[str, ...]
    turns: tuple[str, ...]


_ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
_CAFFEINE = "Cn1c(=O)c2c(ncn2C)n(C)c1=O"
_PARACETAMOL = "CC(=O)Nc1ccc(O)cc1"
_IBUPROFEN = "CC(C)Cc1ccc(C(C)C(=O)O)cc1"
_ALANINE = "C[C@H](N)C(=O)O"
_ACETATE = "CC(=O)[O-]"
_CHOLINE = "C[N+](C)(C)CCO"
_NICOTINE = "CN1CCC[C@H]1c1cccnc1"
_DDT = "Clc1ccc(C(c2ccc(Cl)cc2)C(Cl)(Cl)Cl)cc1"
_GLUCOSE = "OC[C@H]1OC(O)[C@H](O)[C@@H](O)[C@@H]1O"
_CINNAMIC = "OC(=O)/C=C/c1ccccc1"
_MORPHOLINE = "C1COCCN1"

EXAMPLES = (
    Example("description", (_ASPIRIN,), (
        "What am I looking at here?",
        "A benzene ring that carries two groups side by side: a carboxylic acid and an acetate ester. It has the "
        "formula C9H8O4.",
        "How many hydrogen-bond donors does that leave?",
        "One: the OH of the carboxylic acid. The ester has no hydrogen to give, so there is 1 hydrogen-bond donor.",
    )),
    Example("description", (_NICOTINE,), (
        "Please introduce this compound to a student.",
        "It joins two rings, a pyridine ring and a pyrrolidine ring, by a single bond. The nitrogen of the smaller "
        "ring is methylated, which makes it a tertiary amine, and there is one stereocentre where the rings meet.",
        "Which part of it is aromatic?",
        "Only the pyridine ring. The pyrrolidine ring is saturated, so the molecule has 1 aromatic ring.",
    )),
    Example("description", (_GLUCOSE,), (
        "Describe the structure shown.",
        "It is a sugar in its ring form: a tetrahydropyran ring with a hydroxy group on nearly every carbon, among "
        "them a hemiacetal where the ring was closed. Its formula is C6H12O6.",
        "Is there a carbonyl group left?",
        "No, it has no carbonyl group: the carbon that could show one is part of the hemiacetal.",
    )),
    Example("structure", (_PARACETAMOL,), (
        "Does it contain a phenol group?",
        "Yes, it has a phenol group, opposite to the amide on the ring.",
        "And an ester?",
        "No, it has no ester: the oxygen beside the carbonyl group is not there, a nitrogen is, which makes an amide.",
        "What is its formula?",
        "It has the formula C8H9NO2 and weighs 151.2 g/mol.",
    )),
    Example("structure", (_ALANINE,), (
        "How many stereocentres are there, and of which configuration?",
        "It has 1 stereocentre, the carbon that carries the amine; it has 1 (S)-configured stereocentre.",
        "What is its net charge as drawn?",
        "It is neutral as drawn: both the primary amine and the carboxylic acid stand uncharged.",
    )),
    Example("structure", (_CINNAMIC,), (
        "Which rings does the molecule have?",
        "A single one, a benzene ring.",
        "Is the double bond of the chain E or Z?",
        "The alkene has 1 E double bond: the ring and the carboxylic acid stand on opposite sides.",
        "Which elements besides carbon and hydrogen are there?",
        "Only oxygen: it has 2 oxygen atoms, both in the carboxylic acid.",
    )),
    Example("property", (_DDT,), (
        "Would you expect this to dissolve well in water?",
        "No. It has no hydrogen-bond donors and a polar surface area of 0.0 Å², and its Crippen logP of 6.50 points "
        "to a very lipophilic compound.",
        "What makes it so?",
        "The two benzene rings and the chloro groups: it has 5 chlorine atoms and nothing that could bind water.",
    )),
    Example("property", (_IBUPROFEN,), (
        "Does it look like an orally absorbed drug by Lipinski's rules?",
        "Yes: it violates none of Lipinski's rules. It weighs 206.3 g/mol, and its Crippen logP is 3.07.",
        "What could carry it into water?",
        "The carboxylic acid, which loses its proton at the pH of blood. The rest, a benzene ring with alkyl chains, "
        "is lipophilic.",
    )),
    Example("property", (_MORPHOLINE,), (
        "Is this a base?",
        "One would expect so: the secondary amine has a free electron pair. The ether oxygen of the morpholine ring "
        "draws electrons away, so it should be weaker than an amine without it.",
        "How flexible is it?",
        "Hardly: all of it is one ring, and it has 0 rotatable bonds.",
    )),
    Example("comparison", (_ASPIRIN, _PARACETAMOL), (
        "What do these two have in common?",
        "Both molecules contain a benzene ring. Both molecules have a carbonyl group.",
        "And where do they differ?",
        "The first molecule carries an ester and a carboxylic acid. The second molecule has an amide and a phenol "
        "instead. The first molecule weighs 180.2 g/mol; the second molecule weighs 151.2 g/mol.",
    )),
    Example("comparison", (_ACETATE, _CHOLINE), (
        "Do these ions attract each other?",
        "Their charges are opposite, so they should. The first molecule has a net charge of -1. The second molecule "
        "has a net charge of +1.",
        "Which groups carry the charges?",
        "The first molecule has a carboxylate. The second molecule has a quaternary ammonium group.",
    )),
    Example("correction", (_CAFFEINE,), (
        "How acidic is the phenol group of this compound?",
        "It has no phenol group, so there is nothing of that kind to be acidic. What it has is a fused ring system "
        "with 4 nitrogen atoms, and it offers no hydrogen-bond donors.",
    )),
    Example("correction", (_IBUPROFEN,), (
        "Which halogen makes this drug so greasy?",
        "There is no chlorine, no bromine and no fluorine in it. Its lipophilic part is hydrocarbon: a benzene ring "
        "with alkyl chains, which bring the Crippen logP to 3.07.",
        "So it is a base then?",
        "No, it has no amine. It is an acid, by its carboxylic acid group.",
    )),
    Example("unknown", (_ALANINE,), (
        "What does a kilogram of it cost?",
        "A structure does not tell a price, and I would have to guess. What it does tell: this amino acid weighs "
        "89.1 g/mol and has the formula C3H7NO2.",
    )),
    Example("unknown", (_NICOTINE,), (
        "At what temperature does it melt?",
        "That cannot be read off the structure; it has to be measured. From the structure one can say that it has no "
        "hydrogen-bond donors, which usually means weaker bonds between molecules.",
        "Then who isolated it first?",
        "The structure says nothing about its history. It does show a pyridine ring and a tertiary amine.",
    )),
)  # fmt: skip
