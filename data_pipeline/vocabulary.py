"""Cardinalities of the categorical molecule features, shared by the featuriser and the model.

The atom and bond vocabularies are those of OGB 1.3.6 (`ogb.utils.features`), so that encoders pretrained on OGB-style
features can be loaded. The motif features follow ReLMole (see `data_pipeline.motifs`).
"""

from typing import NamedTuple

ATOM_CARDINALITIES = (119, 5, 12, 12, 10, 6, 6, 2, 2)
"""Atomic number, chirality, degree, formal charge, hydrogens, radical electrons, hybridisation, aromatic, in a ring."""

BOND_CARDINALITIES = (5, 6, 2)
"""Bond type, stereo, conjugated."""

MOTIF_FEATURES = 73
"""Width of one motif's 0/1 feature row: 11 + 6·4 + 1 + 1 + 11 + 8·3 + 1."""


class GraphVocabulary(NamedTuple):
    """The number of values of each categorical node and edge feature of a kind of graphs."""

    nodes: tuple[int, ...]
    edges: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, int]:
        """How many features a node and an edge have."""
        return len(self.nodes), len(self.edges)


MOLECULES = GraphVocabulary(ATOM_CARDINALITIES, BOND_CARDINALITIES)
