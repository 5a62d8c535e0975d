"""Whether answers tell the truth about the molecules: every claim against RDKit, and against the seed's text.

A claim that RDKit denies and the seed's own text makes is let pass (people and SMARTS differ on names). What no
structure shows (a role, an origin) has to stand in the seed's text.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data_pipeline.claims import COUNT, Claim, Molecule, claims_in, names_of, shown
from data_pipeline.conversation import Message


class Finding(NamedTuple):
    """Something wrong with a conversation: check and reason can be counted, detail is for people.

    turn: the message that it is about; -1: the whole conversation.
    """

    check: str
    reason: str
    detail: str
    turn: int = -1


class Grounded(NamedTuple):
    """Findings, and how many claims were checked and were true."""

    findings: list[Finding]
    claims: int
    true: int


CONTRADICTED, UNSUPPORTED, NOT_ANSWERED = "contradicted", "not in the seed's text", "does not answer the question"


def grounded(messages: Sequence[Message], molecules: Sequence[Molecule], texts: Sequence[str]) -> Grounded:
    """The claims of every answer, checked; `texts`: what people wrote about each of the molecules."""
    written = [{(claim.kind, claim.name, claim.number) for claim in claims_in(text)} for text in texts]
    written += [set()] * (len(molecules) - len(written))
    text = "\n".join(texts)
    findings = []
    count = true = 0
    for turn, message in enumerate(messages):
        if message.role != "assistant":
            continue
        for claim, meant in _attributed(message.content, molecules):
            count += 1
            if meant.truly(claim, molecules, written):
                true += 1
            else:
                findings.append(Finding("grounding", f"{CONTRADICTED}: {_kind(claim)}", _said(claim), turn))
        for words in _beyond_structure(message.content):
            if not _stands_in(words, text):
                findings.append(Finding("grounding", UNSUPPORTED, words, turn))
        question = messages[turn - 1].content if turn else ""
        findings += _to_the_question(question, message.content, molecules, turn)
    return Grounded(findings, count, true)


def _kind(claim: Claim) -> str:
    """What a claim is about, for counts: group, ring, element, or what is counted (charge, formula, mass)."""
    return claim.name if claim.kind == COUNT and ":" not in claim.name else claim.name.partition(":")[0] if (
        claim.kind == COUNT
    ) else claim.kind  # fmt: skip


def _said(claim: Claim) -> str:
    return f"{shown(claim)} ({claim.words.strip()!r})"


_SENTENCE = re.compile(r"(?<=[.!?;])\s+")
_NOUN = r"(?:molecule|compound|structure)"
_FIRST = rf"\b(?:the )?(?:first|former)(?: {_NOUN}| one)?\b|\b{_NOUN} (?:1|one|A)\b"
_SECOND = rf"\b(?:the )?(?:second|latter)(?: {_NOUN}| one)?\b|\b{_NOUN} (?:2|two|B)\b"
_BOTH = (
    r"\bboth\b|\bneither (?:molecule|compound|of them|of the two)\b|\beach (?:of them|molecule|compound)\b"
    r"|\bthe two (?:molecules|compounds)\b|\b(?:they|these two) share\b"
)
_MENTION = re.compile(rf"(?P<first>{_FIRST})|(?P<second>{_SECOND})|(?P<both>{_BOTH})", re.IGNORECASE)


class _Meant(NamedTuple):
    """Of which molecules a claim is made: of all of them, or of at least one where the text does not say."""

    places: Sequence[int]
    each: bool

    def truly(
        self, claim: Claim, molecules: Sequence[Molecule], written: Sequence[set[tuple[str, str, int | str | None]]]
    ) -> bool:
        """Whether the claim is true, or people have written it, of the molecules that are meant."""
        said = (claim.kind, claim.name, claim.number)
        found = [molecules[place].has(claim) or said in written[place] for place in self.places]
        return all(found) if self.each else any(found)


def _attributed(answer: str, molecules: Sequence[Molecule]) -> Iterator[tuple[Claim, _Meant]]:
    """The claims of an answer with the molecules that they are about."""
    every = range(len(molecules))
    if len(molecules) == 1:
        yield from ((claim, _Meant(every, True)) for claim in claims_in(answer))
        return
    meant = _Meant(every, False)
    for sentence in _SENTENCE.split(answer):
        cuts = [*_MENTION.finditer(sentence)]
        starts = [0, *(match.start() for match in cuts[1:]), len(sentence)]
        for index in range(max(1, len(cuts))):
            if cuts:
                mention = cuts[index]
                meant = _Meant([0] if mention["first"] else [1] if mention["second"] else every, True)
            yield from ((claim, meant) for claim in claims_in(sentence[starts[index] : starts[index + 1]]))


_BEYOND = re.compile(
    r"\bha(?:s|ve) (?:a|the) roles? (?:as|of) [^.;]+"
    r"|\b(?:is|was|are|been|product|metabolite|compound) (?:isolated|found|extracted|obtained|derived) (?:from|in)"
    r" [^.;]+"
    r"|\b(?:is|are) (?:widely |often |commonly )?(?:used|prescribed|sold|marketed) (?:as|for|to|in|under) [^.;]+"
    r"|\balso known as [^.;]+|\b(?:melts|boils) at [^.;]*\d[^.;]*"
    r"|\b(?:melting point|boiling point|pKa|half-life) (?:is|of|near|around) [^.;]*\d[^.;]*"
    r"|\bfirst (?:synthesi[sz]ed|isolated|prepared|made|described) (?:by|in) [^.;]+"
    r"|\b(?:approved|sold|marketed) by [^.;]+|\bCAS (?:registry )?number (?:is )?\d[\d-]+",
    re.IGNORECASE,
)
_LITTLE = frozenset(
    "have role roles that this with from they been which used also known isolated found obtained derived extracted "
    "widely often commonly molecule compound structure and the for its".split()
)


def _beyond_structure(answer: str) -> Iterator[str]:
    for match in _BEYOND.finditer(answer):
        before = answer[max(0, match.start() - 40) : match.start()]
        if not re.search(r"\b(?:no|not|nothing|cannot|whether|nor|if)\b[^.;]*$", before, re.IGNORECASE):
            yield match.group()


def _stands_in(words: str, text: str) -> bool:
    """Whether the text says it: of the words that say something, four fifths are there."""
    told = {word for word in re.findall(r"[a-z0-9-]{3,}", words.lower()) if word not in _LITTLE}
    there = set(re.findall(r"[a-z0-9-]{3,}", text.lower()))
    return len(told & there) >= 0.8 * len(told)


_TOPICS: dict[str, tuple[str, frozenset[str]]] = {
    "groups": (r"functional groups?\b|\bgroups?\b", frozenset(("double bonds",))),
    "rings": (r"\brings?\b|\bring system|cyclic", frozenset(("aromaticity",))),
    "formula": (r"\bformulas?\b", frozenset()),
    "mass": (r"\bmass(?:es)?\b|\bweigh|\bheav(?:y|ier)\b(?! atom)|g/mol", frozenset(("formula",))),
    "charge": (r"\bcharge[ds]?\b|\bneutral\b|\bions?\b|\bcounterion\b", frozenset()),
    "stereo": (r"stereo|\bchiral|\bachiral|\(R\)|\(S\)|\bR or S\b|configur", frozenset()),
    "hydrogen bonds": (r"hydrogen[- ]bond|H-bond|\bdonors?\b|\bacceptors?\b", frozenset()),
    "aromaticity": (r"\baromatic", frozenset(("rings",))),
    "flexibility": (r"rotatable|turn freely|flexib|\brigid", frozenset()),
    "heavy atoms": (r"(?:heavy|non-hydrogen) atoms?", frozenset(("elements",))),
    "double bonds": (r"double bonds?", frozenset(("stereo", "groups"))),
    "solubility": (
        r"\blogP\b|lipophil|\bgreas|\bin oil\b|solub|dissolv|\bprefer water\b|\bpolar\b",
        frozenset(("hydrogen bonds", "charge", "groups", "rings", "elements", "surface")),
    ),
    "surface": (r"surface area", frozenset(("solubility",))),
    "permeability": (
        r"membrane|absor[bp]|permea|\bgut\b|bioavail|surface area|size and polarity",
        frozenset(("Lipinski",)),
    ),
    "Lipinski": (r"Lipinski|rule of five|drug-like", frozenset(("hydrogen bonds", "mass", "solubility"))),
    "acidity": (r"\bacid(?:ic|ity)?\b|\bbas(?:e|ic|icity)\b|\bpKa\b", frozenset(("groups",))),
    "elements": (r"\belements?\b|heavy atoms by|\d [A-Z][a-z]? atoms", frozenset(("heavy atoms", "formula"))),
}
"""What questions ask about and answers speak of, by their words; and of what else an answer may speak instead."""
_CLAIMED = {"group": "groups", "ring": "rings", "element": "elements", "rotatable bonds": "flexibility"}
_NAMES_OF_ACIDS = re.compile(r"\b\w+(?:ic|amic) acids?\b", re.IGNORECASE)


def topics_of(text: str) -> set[str]:
    """What a text speaks of, by _TOPICS and its claims."""
    words = _NAMES_OF_ACIDS.sub(" ", text)  # a carboxylic acid is a group
    topics = {topic for topic, (pattern, _) in _TOPICS.items() if re.search(pattern, words, re.IGNORECASE)}
    kinds = {claim.kind if claim.kind != COUNT else claim.name.partition(":")[0] for claim in claims_in(text)}
    return topics | {_CLAIMED[kind] for kind in kinds if kind in _CLAIMED}


_YES, _NO = re.compile(r"\s*yes\b", re.IGNORECASE), re.compile(r"\s*no\b(?! \w+ (?:is|are)\b)", re.IGNORECASE)
_YES_OR_NO = re.compile(r"\W*(?:(?:and|so|then|but|well)\W+)*(?:does|do|has|have|is|are|can|could)\b", re.IGNORECASE)
_OPEN = re.compile(r"\W*(?:what|which|how|why|where)\b(?!.*\?.*\?)", re.IGNORECASE | re.DOTALL)
_REQUEST = re.compile(r"\W*(?:please )?(?:describe|list|count|compare|give|write|summari[sz]e|tell)\b", re.IGNORECASE)
_NUMBER_FIRST = re.compile(r"\W*(?:\d+|no|none|zero|one|two|three|four|five|six|seven|eight|nine|ten)\b", re.IGNORECASE)
_UNANSWERABLE = re.compile(r"\bcannot\b|\bcan't\b|\bnot (?:tell|known|possible)|\bnothing\b|\bunknown\b", re.IGNORECASE)


def _to_the_question(question: str, answer: str, molecules: Sequence[Molecule], turn: int) -> Iterator[Finding]:
    """Yes or no to one claim is a claim itself; and a question about one thing wants an answer about it."""
    asked = claims_in(question)
    yes, no = _YES.match(answer), _NO.match(answer)
    if len(asked) == 1 and question.count("?") == 1 and _YES_OR_NO.match(_SENTENCE.split(question)[-1]):
        if len(molecules) == 1 and (yes or no):
            # of a name that has a wider meaning, too, yes is right for either, and no for the narrow one
            claim = asked[0]._replace(number=(asked[0].number or None) if yes else 0)
            if not molecules[0].has(claim):
                words = f"{'yes' if yes else 'no'} to {question!r}"
                yield Finding("grounding", f"{CONTRADICTED}: yes or no", words, turn)
        spoken_of = bool(_named(asked) & _named(claims_in(answer))) or any(
            word.lower() in answer.lower() for word in re.findall(r"[a-z]{4,}", asked[0].name)
        )
        alike = [claim for claim in claims_in(answer) if claim.kind == asked[0].kind]
        others = no and alike and all(claim.number != 0 for claim in alike)  # what there is instead
        if not spoken_of and not others and len(answer.split()) > 2 and asked[0].kind != COUNT:
            yield Finding("grounding", NOT_ANSWERED, f"{question!r}, about {shown(asked[0])}", turn)
            return
    if (_OPEN.match(question) and yes) or (_REQUEST.match(question) and (yes or no)):
        yield Finding("grounding", NOT_ANSWERED, f"{question!r}, by yes or no", turn)
        return
    denied = {claim.name for claim in claims_in(answer) if claim.number == 0 and claim.kind != COUNT}
    beside = len(asked) == 1 and asked[0].kind != COUNT and not _named(asked) & _named(claims_in(answer))
    if beside and denied and not re.search(rf"\b{re.escape(asked[0].name)}", answer, re.IGNORECASE):
        yield Finding("grounding", NOT_ANSWERED, f"{question!r}, but about {', '.join(sorted(denied))}", turn)
        return
    if re.search(r"\bhow many\b|\bcharge\b|\bcount\b", question, re.IGNORECASE) and _NUMBER_FIRST.match(answer):
        return
    topics = topics_of(question)
    if len(topics) == 1 and not _UNANSWERABLE.search(answer) and len(answer.split()) > 2:
        (topic,) = topics
        if not topics_of(answer) & ({topic} | _TOPICS[topic][1]):
            yield Finding("grounding", NOT_ANSWERED, f"{question!r}, about {topic}", turn)


def _named(claims: Sequence[Claim]) -> set[str]:
    """What claims are about, by every name of it: a hydroxy group is an alcohol's, too."""
    return {name for claim in claims for name in (claim.name.partition(":")[2] or claim.name, *names_of(claim))}
