"""How alike conversations are: near-duplicates by MinHash (library datasketch), distinct n-grams, what is covered."""

import bisect
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.conversation import Message
from data_pipeline.functional_groups import FUNCTIONAL_GROUPS, mentioned_groups

PERMUTATIONS = 128  # the similarity's standard error is 1 / sqrt(128) = 0.09 at most, 0.03 at 0.9
SHINGLE = 4  # words
_SIEVE = 0.95  # above it, the library's hash table has a single band
_SIZES = (10, 20, 30, 40, 60)
"""Heavy atoms of a molecule: the upper ends of bins."""


class Diversity:
    """Conversations that are kept, one after another; `near_duplicate`: similarity from which one is dropped."""

    def __init__(self, near_duplicate: float):
        from datasketch import HyperLogLogPlusPlus, MinHashLSH

        # a sieve; what passes it is compared by all permutations
        self._kept = MinHashLSH(threshold=min(near_duplicate, _SIEVE), num_perm=PERMUTATIONS)
        self._threshold = near_duplicate
        self._hashes: dict[str, Any] = {}
        self._places: dict[str, int] = {}
        # counted to 1 %, in 16 kB, however many there are
        self._grams = {size: HyperLogLogPlusPlus(p=14) for size in (1, 2, 3)}
        self._words = Counter[int]()
        self._groups = Counter[str]()
        self._sizes = Counter[int]()
        self.molecules = set[str]()

    def twin(self, name: str, smiles: Sequence[str], messages: Sequence[Message]) -> str | None:
        """The name of a conversation that is nearly the same; None, and from now on it is there, if there is none."""
        from datasketch import MinHash

        words = re.findall(r"[\w.+-]+", " ".join(message.content.lower() for message in messages))
        shingles = {" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1))}
        # of different molecules, too: what is said of both tells a model nothing about either
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch([shingle.encode() for shingle in sorted(shingles)])
        twins = [other for other in self._kept.query(sketch) if self._hashes[other].jaccard(sketch) >= self._threshold]
        if twins:
            return min(twins, key=self._places.__getitem__)  # the first: sets have no order to rely on
        self._kept.insert(name, sketch)
        self._hashes[name] = sketch
        self._places[name] = len(self._places)
        self._count(words, smiles, messages)
        return None

    def _count(self, words: list[str], smiles: Sequence[str], messages: Sequence[Message]) -> None:
        for size, seen in self._grams.items():
            for start in range(len(words) - size + 1):
                seen.update(" ".join(words[start : start + size]).encode())
            self._words[size] += max(0, len(words) - size + 1)
        self._groups.update(sorted({name for message in messages for name in mentioned_groups(message.content)}))
        self.molecules.update(smiles)

    def sized(self, heavy_atoms: int) -> None:
        """Counts a molecule of this size."""
        self._sizes[bisect.bisect_left(_SIZES, heavy_atoms)] += 1

    def report(self) -> Mapping[str, Any]:
        """distinct-n (Li et al., 2016): different n-grams over all; groups named; molecules and their sizes."""
        labels = [*(f"up to {end}" for end in _SIZES), f"more than {_SIZES[-1]}"]
        return {
            **{f"distinct_{size}": seen.count() / max(1, self._words[size]) for size, seen in self._grams.items()},
            "groups_named": len(self._groups),
            "groups_known": len(FUNCTIONAL_GROUPS),
            "groups": dict(self._groups.most_common()),
            "molecules": len(self.molecules),
            "heavy_atoms": {label: self._sizes[place] for place, label in enumerate(labels)},
        }
