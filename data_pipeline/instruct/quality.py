"""What a conversation has to be before it is kept: its form, its truth, what it tells, and what it must not give away.

Every check leaves findings that can be counted; a turn with one, and what follows it, is cut off, and a conversation
without turns is rejected.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rdkit import Chem

from data_pipeline.claims import Molecule, claims_in
from data_pipeline.conversation import Message
from data_pipeline.errors import DataError
from data_pipeline.guard import tried
from data_pipeline.instruct.grounding import Finding, grounded, topics_of
from data_pipeline.instruct.kinds import KINDS, RULES
from data_pipeline.molecule import InvalidMoleculeError, parse_smiles

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier


class Thresholds(NamedTuple):
    """Where checks draw the line; a job's own with `--threshold NAME=VALUE`, kept in quality.json."""

    max_turns: int = 16  # messages
    max_characters: int = 2000  # of a message
    min_answer_characters: int = 3
    foreign: float = 0.8  # probability (py3langid) from which an answer is in another language
    copied: float = 0.95  # share of the seed's words in their order that the only answer may be
    max_repeats: int = 3  # molecules that may get the same answer, word by word, without a claim in it
    near_duplicate: float = 0.9  # Jaccard similarity of two conversations' word 4-grams (MinHash)
    max_unsupported: int = 0  # statements of roles, origins and the like that the seed's text does not make

    def changed(self, settings: Sequence[str]) -> "Thresholds":
        """With NAME=VALUE settings; raises DataError."""
        values: dict[str, Any] = {}
        for setting in settings:
            name, _, value = setting.partition("=")
            if name not in self._fields:
                raise DataError(f"no threshold {name!r}; known: {', '.join(self._fields)}")
            try:
                values[name] = type(getattr(self, name))(value)
            except ValueError:
                raise DataError(f"threshold {name}: {value!r} is no number") from None
        changed = self._replace(**values)
        for name in ("foreign", "copied", "near_duplicate"):
            if not 0 < getattr(changed, name) <= 1:
                raise DataError(f"threshold {name}: {getattr(changed, name):g} is not between 0 and 1")
        return changed


class Shown(NamedTuple):
    """A conversation with what it is judged by. texts: what people wrote of its molecules."""

    kind: str
    smiles: tuple[str, ...]
    texts: tuple[str, ...]
    messages: tuple[Message, ...]


class Verdict(NamedTuple):
    """What is kept of a conversation, what was found, and how many claims were made and true."""

    kept: tuple[Message, ...]
    findings: tuple[Finding, ...]
    claims: int
    true: int


def judged(shown: Shown, thresholds: Thresholds) -> Verdict:
    """All checks of one conversation; raises InvalidMoleculeError for its molecules."""
    findings = list(_too_long(shown, thresholds))
    if findings:  # nothing reads on, whatever a teacher may have sent
        first = findings[0].turn
        shown = shown._replace(messages=shown.messages[: first - first % 2])
    findings += _form(shown, thresholds) if shown.messages or not findings else []
    if not shown.messages or any(finding.turn < 0 for finding in findings):
        return Verdict((), tuple(findings), 0, 0)
    molecules = [_molecule(smiles) for smiles in shown.smiles]
    truth = grounded(shown.messages, molecules, shown.texts)
    unsupported = [finding for finding in truth.findings if finding.reason.startswith("not in")]
    if len(unsupported) <= thresholds.max_unsupported:
        findings += [finding for finding in truth.findings if finding not in unsupported]
    else:
        findings += truth.findings
    findings += _vacuous(shown)
    findings += _given_away(shown)
    whole = any(finding.turn < 0 for finding in findings)
    first = min((finding.turn for finding in findings), default=len(shown.messages))
    kept = () if whole else shown.messages[: first - first % 2]
    return Verdict(kept, tuple(findings), truth.claims, truth.true)


@functools.lru_cache(maxsize=256)
def _molecule(smiles: str) -> Molecule:
    return Molecule(smiles)


_MARKUP = re.compile(
    r"<graph>|</?s>|\[/?INST\]|<<SYS>>|<\|[^|]*\|>|```|^\s*(?:user|assistant|system|human)\s*:|\{\s*\"|\\n|<[a-z/][^>]*>"
    r"|\*\*|^#+ |^\s*(?:[-*•]|\d+[.)]) |\]\(http|\$[^$\n]+\$",
    re.IGNORECASE | re.MULTILINE,
)
_ITSELF = re.compile(
    r"\bas an? (?:\w+ )?(?:AI|language model|LLM|chatbot|assistant)\b"
    r"|\bI(?:'m| am) an? (?:\w+ )?(?:AI|language model|LLM)\b"
    r"|\bI(?:'m| am) (?:just|only) an? |\bmy training data\b|\bI(?:'m| am) sorry, but\b",
    re.IGNORECASE,
)
_GARBLED = re.compile(r"[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_PROMPT = re.compile(
    r"\bprevious instructions\b|\binput JSON\b|\bthe description (?:mentions|says|states|lists)\b"
    r"|\b(?:given|provided) (?:facts|description|JSON|text|data)\b|\bthe (?:facts|JSON|prompt) (?:say|state|list|given)"
    r"|\baccording to (?:the )?(?:facts|JSON|RDKit|description)\b|\biupac_name\b|\bRDKit\b",
    re.IGNORECASE,
)

_UNWANTED = (
    (_MARKUP, "markup"),
    (_ITSELF, "speaks of itself"),
    (_PROMPT, "words of the prompt"),
    (_GARBLED, "garbled characters"),
)


def _too_long(shown: Shown, thresholds: Thresholds) -> list[Finding]:
    lengths = [len(message.content) for message in shown.messages]
    long = [(turn, length) for turn, length in enumerate(lengths) if length > thresholds.max_characters]
    return [Finding("form", "too long", f"{length:,} characters", turn) for turn, length in long[:1]]


def _form(shown: Shown, thresholds: Thresholds) -> list[Finding]:
    messages = shown.messages
    roles = [message.role for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        return [Finding("form", "roles do not alternate from user to assistant", " ".join(roles))]
    if len(roles) > thresholds.max_turns:
        return [Finding("form", "too many turns", str(len(roles)))]
    found = []
    answers = [message.content for message in messages[1::2]]
    for turn, message in enumerate(messages):
        text = message.content

        def finding(reason: str, detail: str, turn: int = turn) -> Finding:
            return Finding("form", reason, detail, turn)

        least = thresholds.min_answer_characters if message.role == "assistant" else 2
        if len(text.strip()) < least:
            found.append(finding("too short", repr(text)))
        for pattern, reason in _UNWANTED:
            match = pattern.search(text)
            if match:
                found.append(finding(reason, match.group().strip()))
        if _prompt_words() & _grams(text, 8):
            found.append(finding("words of the prompt", text[:100]))
        if message.role == "assistant" and len(text.split()) > 3 and text.strip()[-1] not in ".!?…)”\"'":
            found.append(finding("cut short", text[-60:]))
        letters = [character for character in text if character.isalpha()]
        if sum(not _is_western(letter) for letter in letters) > 0.3 * len(letters):
            found.append(finding("another script", text[:100]))
        if len(text.split()) > 30 and len(set(_words(text))) < 0.3 * len(text.split()):
            found.append(finding("repeats itself", text[:100]))
        language, probability = _languages().classify(text)
        if len(text.split()) > 3 and language != "en" and probability >= thresholds.foreign:
            found.append(finding(f"language {language}", text[:100]))
    if len(answers) == 1 and any(_is_copy(answers[0], text, thresholds.copied) for text in shown.texts if text):
        found.append(Finding("form", "a copy of the seed's text and nothing else", answers[0][:100]))
    return found


def _is_western(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(("LATIN", "GREEK"))


@functools.cache
def _languages() -> "LanguageIdentifier":
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w-]+", text.lower())


def _grams(text: str, size: int) -> set[tuple[str, ...]]:
    words = _words(text)
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


@functools.cache
def _prompt_words() -> frozenset[tuple[str, ...]]:
    return frozenset(gram for text in (RULES, *(kind.task for kind in KINDS.values())) for gram in _grams(text, 8))


def _is_copy(answer: str, text: str, share: float) -> bool:
    answer_grams, text_grams = _grams(answer, 3), _grams(text, 3)
    return bool(answer_grams) and len(answer_grams & text_grams) >= share * len(answer_grams)


_VACUOUS = re.compile(
    r"^(?:the|this) (?:molecule|compound) is (?:a|an) (?:natural product(?: found in [^.]+)?|(?:organic |chemical )?"
    r"(?:compound|molecule|substance)|metabolite)\.?$",
    re.IGNORECASE,
)


def _vacuous(shown: Shown) -> list[Finding]:
    """Answers that tell nothing, and conversations in which nothing is said of the molecule."""
    answers = [(turn, message.content) for turn, message in enumerate(shown.messages) if message.role == "assistant"]
    found = [
        Finding("informativeness", "vacuous", text, turn) for turn, text in answers if _VACUOUS.match(text.strip())
    ]
    told = any(claims_in(text) or topics_of(text) or _about_the_text(text, shown.texts) for _, text in answers)
    if not told:
        found.append(Finding("informativeness", "says nothing of the molecule", answers[0][1][:100]))
    return found


def _about_the_text(answer: str, texts: Sequence[str]) -> bool:
    """Whether an answer takes up what people wrote: three words in their order."""
    return any(_grams(answer, 3) & _grams(text, 3) for text in texts if text)


_IDENTIFIER = re.compile(
    r"\bInChI=1|\b[A-Z]{14}-[A-Z]{10}-[A-Z]\b|\bCAS\b[^.;]{0,20}\d+-\d\d-\d\b|\bCID:? ?\d+|\bCHEMBL ?\d+|\bDB\d{5}\b"
    r"|\bCHEBI:\d+",
    re.IGNORECASE,
)
_LIKE_SMILES = re.compile(r"(?<![\w-])[A-Za-z0-9@+\-\[\]()=#$/\\%.]{6,}")


def _given_away(shown: Shown) -> list[Finding]:
    """Messages that hold the molecule that the graph shall tell about, as SMILES or identifier."""
    spellings = {spelling for smiles in shown.smiles for spelling in _spellings(smiles)}
    found = []
    for turn, message in enumerate(shown.messages):
        match = _IDENTIFIER.search(message.content)
        if match:
            found.append(Finding("leakage", "an identifier", match.group(), turn))
        words = {word.strip(".,;:?!'\"“”") for word in message.content.split() if len(word) > 2}
        if words & spellings:
            found.append(Finding("leakage", "a SMILES", min(words & spellings)[:100], turn))
            continue
        for word in _LIKE_SMILES.findall(message.content):
            word = word.rstrip(".,;:?!")
            if re.search(r"[=#()\[\]]|[A-Za-z]1", word) and _is_smiles(word):
                found.append(Finding("leakage", "a SMILES", word[:100], turn))
                break
    return found


@functools.lru_cache(maxsize=1024)
def _spellings(smiles: str) -> frozenset[str]:
    mol = parse_smiles(smiles)
    return frozenset((smiles, Chem.MolToSmiles(mol), Chem.MolToSmiles(mol, isomericSmiles=False)))


def _is_smiles(word: str) -> bool:
    """Whether RDKit reads a molecule of some size; "(S)" and "(R)-configured" are words."""
    if not re.search(r"[CcNnOo]", word) or re.search(r"[adefghijklmqtuvwxyz]{2}", word):
        return False
    try:
        return tried(parse_smiles, word).GetNumHeavyAtoms() > 5
    except InvalidMoleculeError:
        return False
