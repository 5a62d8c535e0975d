"""Which conversation is about which seeds: a pure function of the seeds, the shares and a number, kept as it grows."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from data_pipeline.errors import DataError
from data_pipeline.instruct.kinds import KINDS
from data_pipeline.instruct.replies import Replies
from data_pipeline.instruct.requests import Request, request_for
from data_pipeline.instruct.seeds import Excluded, Seed, canonical, facts_about
from data_pipeline.molecule import InvalidMoleculeError
from data_pipeline.progress import watched


class Planned(NamedTuple):
    """One conversation to be written: the seeds by their indices, how far the seeds are used up, its request's key."""

    number: int
    kind: str
    seeds: tuple[int, ...]
    used: int
    key: str = ""


class Plan:
    """The conversations of a job, and the seeds that were passed over: (index, reason).

    Seeds are used in a random order, all of them before one is used again.
    """

    def __init__(self, seeds: Sequence[Seed], excluded: Excluded, seed: int, asked: str, replies: Replies):
        self.seeds = seeds
        self.items: list[Planned] = []
        self.skipped: dict[int, str] = {}
        self._excluded, self._seed, self._asked, self._replies = excluded, seed, asked, replies
        self._order: list[int] = []
        for kind, indices, used, key, skipped in replies.planned():
            self.items.append(Planned(len(self.items), kind, tuple(indices), used, key))
            self.skipped.update((index, reason) for index, reason in skipped)

    def extend(self, kinds: Sequence[str]) -> list[Planned]:
        """As many more as there are kinds, in this order; raises DataError if the seeds do not suffice for one."""
        start = len(self.items)
        rows = []
        for kind in watched(kinds, desc="plan", unit=" conversations"):
            used = self.items[-1].used if self.items else 0
            before = set(self.skipped)
            chosen: list[int] = []
            begin = used
            while len(chosen) < KINDS[kind].molecules:
                if used - begin > 2 * len(self.seeds):
                    raise DataError(self._too_few(kind))
                index = self._at(used)
                used += 1
                if self._usable(index) and self._differs(index, chosen):
                    chosen.append(index)
            new = [(index, reason) for index, reason in self.skipped.items() if index not in before]
            item = Planned(len(self.items), kind, tuple(chosen), used)
            self.items.append(item._replace(key=self.request(item).key))
            rows.append((kind, chosen, used, self.items[-1].key, new))
        self._replies.plan(start, rows)
        return self.items[start:]

    def request(self, item: Planned) -> Request:
        """What the teacher is asked for it."""
        rng = random.Random(f"{self._seed} {item.number}")
        asked = f"{self._asked} {item.number}"  # a seed that is used again shall not get the same conversation
        request = request_for(item.kind, [self.seeds[index] for index in item.seeds], rng, asked)
        return request._replace(key=item.key or request.key)

    def _usable(self, index: int) -> bool:
        if index in self.skipped:
            return False
        try:
            reason = self._excluded.reason(self.seeds[index].smiles)
            if not facts_about(self.seeds[index].smiles).basic.elements:
                reason = reason or "no heavy atoms"
        except InvalidMoleculeError as error:
            reason = error.reason
        if reason:
            self.skipped[index] = reason
        return not reason

    def _differs(self, index: int, chosen: Sequence[int]) -> bool:
        """Whether it is another molecule than those, however it is written."""
        found = canonical(self.seeds[index].smiles)
        return all(found != canonical(self.seeds[other].smiles) for other in chosen)

    def _too_few(self, kind: str) -> str:
        found = f"{len(self.seeds) - len(self.skipped)} of {len(self.seeds)} rows can be used"
        why = f" ({dict(Counter(self.skipped.values()).most_common(5))})" if self.skipped else ""
        return f"{found}{why}: too few different molecules for conversations of the kind {kind}"

    def _at(self, used: int) -> int:
        turn, place = divmod(used, len(self.seeds))
        if place == 0 or not self._order:
            self._order = list(range(len(self.seeds)))
            random.Random(f"{self._seed} seeds {turn}").shuffle(self._order)
        return self._order[place]


def kinds_in_turn(shares: Mapping[str, float], counts: Mapping[str, int] | None = None) -> Iterator[str]:
    """Kinds without end, at every moment as close to their shares as whole numbers can be."""
    there = Counter(counts or {})
    total = sum(shares.values())
    while True:
        number = sum(there.values()) + 1
        kind = max(shares, key=lambda kind: shares[kind] / total * number - there[kind])
        there[kind] += 1
        yield kind


def read_shares(settings: Sequence[str]) -> dict[str, float]:
    """KIND=SHARE settings, the kinds that are not named left out; without any, the usual ones. Raises DataError."""
    if not settings:
        return {name: kind.share for name, kind in KINDS.items()}
    shares = {}
    for setting in settings:
        name, _, share = setting.partition("=")
        if name not in KINDS:
            raise DataError(f"no kind {name!r}; known: {', '.join(KINDS)}")
        try:
            shares[name] = float(share)
        except ValueError:
            raise DataError(f"--kinds {setting!r}: a share is a number, such as {name}=0.5") from None
    if min(shares.values()) < 0 or not 0 < sum(shares.values()) < float("inf"):
        raise DataError("--kinds: shares are not negative, and one is above 0")
    return {name: share for name, share in shares.items() if share}


def identity_of(shares: Mapping[str, float]) -> dict[str, Any]:
    """For the identity of a job: relative shares."""
    total = sum(shares.values())
    return {name: round(share / total, 6) for name, share in shares.items()}
