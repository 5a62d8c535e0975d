"""Tasks: how a row of a file becomes a conversation. Column names are options with sensible guesses.

Every task's reader gets the columns of a file and returns what makes `Conversation`s of a row: one, or one for each
property in the property tasks.
"""

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rdkit import Chem

from data_pipeline.conversation import ROLES, Conversation, Message
from data_pipeline.describe import DESCRIPTION_REQUESTS
from data_pipeline.errors import DataError, RowError
from data_pipeline.molecule import InvalidMoleculeError, is_selfies, parse_smiles

GRAPH_MARKER = "<graph>"
"""Where a record in LLaMo's own layout wants its graph; everywhere else it is ordinary text."""

SMILES_COLUMNS = ("smiles", "canonical_smiles", "mol", "molecule")
_TEXT = ("description", "text", "caption", "output")
_NAME = ("iupac_name", "iupac", "name", "iupacname")
_REACTION = ("reaction", "reaction_smiles", "reactionsmiles", "rxn_smiles", "rxn")
_REACTANTS = ("precursors", "reactants", "reactant")
_PRODUCT = ("product", "products")


class Columns(NamedTuple):
    """Names of the columns to read; None or empty: guess. `targets` are the property columns."""

    smiles: str | None = None
    text: str | None = None
    targets: tuple[str, ...] = ()


class Property(NamedTuple):
    """A column of a public data set: what it holds, and its unit ("" without one)."""

    phrase: str
    unit: str = ""


REGRESSION: dict[str, Property] = {
    # MoleculeNet (Wu et al., 2018)
    "measured log solubility in mols per litre": Property("aqueous solubility (log10)", "log mol/L"),
    "expt": Property("hydration free energy in water", "kcal/mol"),
    "exp": Property("octanol/water distribution coefficient logD at pH 7.4"),
    "pic50": Property("pIC50 for the inhibition of human beta-secretase 1"),
    # QM9 (Ramakrishnan et al., 2014)
    "homo": Property("HOMO energy", "Hartree"),
    "lumo": Property("LUMO energy", "Hartree"),
    "gap": Property("HOMO-LUMO gap", "Hartree"),
}
"""Known columns of numbers; any other column needs `--target_column` and is called by its name."""

CLASSIFICATION: dict[str, str] = {
    "class": "Does this molecule inhibit human beta-secretase 1 (BACE-1)?",
    "p_np": "Can this molecule cross the blood-brain barrier?",
    "hiv_active": "Does this molecule inhibit the replication of HIV?",
    "ct_tox": "Did this molecule fail clinical trials because of toxicity?",
    "fda_approved": "Is this molecule approved by the FDA?",
}
"""Known columns of classes and their questions; any other column needs `--target_column`."""

NAME_REQUESTS = ("What is the IUPAC name of this molecule?", "Give the IUPAC name of this molecule.")
FORWARD_REQUESTS = (
    "What is the product of the reaction of these molecules?",
    "These molecules react. Predict the product.",
)
RETRO_REQUESTS = (
    "Which reactants can this molecule be made from?",
    "Suggest reactants for a synthesis of this molecule.",
)
GENERATION_REQUEST = "Give the SMILES of a molecule that fits this description: {}"


class Missing(NamedTuple):
    """A label that a row leaves empty: no conversation, and no fault either."""

    column: str


EMPTY = ("", "nan", "na", "n/a", "null", "none")
"""What tables write where a label is not known, in lower case."""

Row = Mapping[str, Any]
Found = Sequence[Conversation | Missing | RowError]


class RowReader(NamedTuple):
    """Makes the conversations of a row, `examples` of them or why there are none.

    Called with a row; raises RowError or InvalidMoleculeError, if the row gives none at all.
    """

    read: Callable[[Row], Found]
    examples: int = 1  # more than one in the property tasks: one for each label
    columns: tuple[str, ...] = ()  # that it reads

    def __call__(self, row: Row) -> Found:
        return self.read(row)


def description_reader(found: Sequence[str], columns: Columns) -> RowReader:
    """Molecule and description: "Describe this molecule." → description."""
    smiles = _pick(found, columns.smiles, SMILES_COLUMNS, "--smiles_column")
    text = _pick(found, columns.text, _TEXT, "--text_column")
    return RowReader(
        lambda row: [_turn(_molecule(row, smiles), DESCRIPTION_REQUESTS, _text(row, text))], 1, (smiles, text)
    )


def iupac_name_reader(found: Sequence[str], columns: Columns) -> RowReader:
    """Molecule and its IUPAC name."""
    smiles = _pick(found, columns.smiles, SMILES_COLUMNS, "--smiles_column")
    name = _pick(found, columns.text, _NAME, "--text_column")
    return RowReader(lambda row: [_turn(_molecule(row, smiles), NAME_REQUESTS, _text(row, name))], 1, (smiles, name))


def molecule_generation_reader(found: Sequence[str], columns: Columns) -> RowReader:
    """Description → SMILES; shows no graph. The answer is RDKit's canonical SMILES, with stereochemistry."""
    smiles = _pick(found, columns.smiles, SMILES_COLUMNS, "--smiles_column")
    text = _pick(found, columns.text, _TEXT, "--text_column")

    def read(row: Row) -> list[Conversation]:
        request = GENERATION_REQUEST.format(_text(row, text))
        return [Conversation((), (Message("user", request), Message("assistant", _canonical(_molecule(row, smiles)))))]

    return RowReader(read, 1, (smiles, text))


def property_regression_reader(found: Sequence[str], columns: Columns) -> RowReader:
    """Molecule and numbers: one conversation for each known property, the answer as the file writes it."""
    smiles = _pick(found, columns.smiles, SMILES_COLUMNS, "--smiles_column")
    questions = {}
    for column in _targets(found, columns.targets, REGRESSION):
        phrase, unit = REGRESSION.get(column.lower(), Property(column))
        questions[column] = f"What is the {phrase} of this molecule{f', in {unit}' if unit else ''}?"

    return RowReader(lambda row: _labels(row, smiles, questions, _number), len(questions), (smiles, *questions))


def property_classification_reader(found: Sequence[str], columns: Columns) -> RowReader:
    """Molecule and yes/no classes (1/0, true/false, yes/no): one conversation for each known class."""
    smiles = _pick(found, columns.smiles, SMILES_COLUMNS, "--smiles_column")
    questions = {
        column: CLASSIFICATION.get(column.lower(), f"Is this molecule positive for {column}?")
        for column in _targets(found, columns.targets, CLASSIFICATION)
    }

    return RowReader(lambda row: _labels(row, smiles, questions, _yes_no), len(questions), (smiles, *questions))


def forward_reaction_reader(found: Sequence[str], columns: Columns) -> RowReader:
    """Reactants and reagents, each with its graph → product."""
    split = _reaction_reader(found, columns)

    def read(row: Row) -> list[Conversation]:
        precursors, product = split(row)
        return [_turn(components(precursors), FORWARD_REQUESTS, _canonical(product))]

    return RowReader(read)


def retrosynthesis_reader(found: Sequence[str], columns: Columns) -> RowReader:
    """Product → reactants, without reagents where the file tells them apart."""
    split = _reaction_reader(found, columns, reagents=False)

    def read(row: Row) -> list[Conversation]:
        reactants, product = split(row)
        return [_turn(components(product), RETRO_REQUESTS, _canonical(reactants))]

    return RowReader(read)


def instruction_reader(found: Sequence[str], columns: Columns) -> RowReader:
    """Conversations: {"smiles": str or list, "messages": [{"role", "content"}, ...]}; "smiles" may be absent.

    Or LLaMo's own layout, {"smiles", "instruction": str or list of messages, "output"}; one `<graph>` in the first
    question says where the graph stands. Alpaca's "input", if it is not the molecule, follows the instruction.
    """
    names = {name.lower(): name for name in found}
    if columns.smiles:
        smiles = _pick(found, columns.smiles, (), "--smiles_column")
    else:
        smiles = next((names[name] for name in SMILES_COLUMNS if name in names), "smiles")
    if columns.text is None and "messages" not in names and {"instruction", "output"} <= set(names):
        return RowReader(lambda row: [_llamo_record(row, smiles)], 1, (smiles, "instruction", "output"))
    column = _pick(found, columns.text, ("messages",), "--text_column")
    return RowReader(
        lambda row: [Conversation(_smiles_list(row.get(smiles)), _messages(row.get(column)))], 1, (smiles, column)
    )


TASKS: dict[str, Callable[[Sequence[str], Columns], RowReader]] = {
    "description": description_reader,
    "iupac_name": iupac_name_reader,
    "property_regression": property_regression_reader,
    "property_classification": property_classification_reader,
    "forward_reaction": forward_reaction_reader,
    "retrosynthesis": retrosynthesis_reader,
    "instruction": instruction_reader,
    "molecule_generation": molecule_generation_reader,
}
"""Task name → maker of its row reader; raises DataError, listing the columns found, if a column is missing."""


def overlooked_molecules(task: str, rows: Sequence[Row], columns: Columns) -> str | None:
    """A column of conversations that holds molecules which nothing would read; None if there is none.

    Judged by the first rows of a file: all that a column has there are molecules, and no column of a known name is
    there. Texts that happen to be one (C, I, No) are too short to count.
    """
    if task != "instruction" or columns.smiles or not rows:
        return None
    names = dict.fromkeys(name for row in rows for name in row)
    if {name.lower() for name in names} & set(SMILES_COLUMNS):
        return None
    for name in names:
        texts = [text.strip() for row in rows if isinstance(text := row.get(name), str) and text.strip()]
        if texts and max(map(len, texts)) > 2 and all(map(_reads_as_molecule, texts)):
            return name
    return None


def _reads_as_molecule(text: str) -> bool:
    try:
        return is_selfies(text) or parse_smiles(text) is not None
    except InvalidMoleculeError:
        return False


def smiles_column(found: Sequence[str]) -> str:
    """The column that holds molecules, by its name; raises DataError, listing the columns, if there is none."""
    return _pick(found, None, SMILES_COLUMNS, "--smiles_column")


def components(smiles: str) -> tuple[str, ...]:
    """The molecules of a dot-separated SMILES; its charged components, which belong together, are one molecule."""
    neutral: list[str] = []
    charged: list[str] = []
    for part in filter(None, smiles.split(".")):
        (charged if _formal_charge(part) else neutral).append(part)
    return (*neutral, ".".join(charged)) if charged else tuple(neutral)


def _formal_charge(smiles: str) -> int:
    charge = 0
    for sign, digits in re.findall(r"\[[^\]]*?([+-]+)(\d*)(?::\d+)?\]", smiles):
        size = int(digits[:3]) if digits else len(sign)
        charge += size if sign[0] == "+" else -size
    return charge


def _turn(smiles: str | tuple[str, ...], requests: Sequence[str], answer: str) -> Conversation:
    """One question and its answer; the wording varies with the molecules, reproducibly."""
    smiles = (smiles,) if isinstance(smiles, str) else smiles
    request = random.Random(f"request {'.'.join(smiles)}").choice(requests)
    return Conversation(smiles, (Message("user", request), Message("assistant", answer)))


def _labels(
    row: Row, smiles: str, questions: Mapping[str, str], read: Callable[[Row, str], str]
) -> list[Conversation | Missing | RowError]:
    """Of each label a conversation, or why there is none: one that is empty or wrong takes no other with it."""
    molecule = _molecule(row, smiles)
    found: list[Conversation | Missing | RowError] = []
    for column, ask in questions.items():
        if str("" if row.get(column) is None else row[column]).strip().lower() in EMPTY:
            found.append(Missing(column))
            continue
        try:
            found.append(_turn(molecule, (ask,), read(row, column)))
        except RowError as error:
            found.append(error)
    return found


def _reaction_reader(
    found: Sequence[str], columns: Columns, *, reagents: bool = True
) -> Callable[[Row], tuple[str, str]]:
    """A function from a row to (reactants, product), without atom maps."""
    names = {name.lower(): name for name in found}
    column = next((names[name] for name in (columns.text or "", *_REACTION) if name.lower() in names), None)
    if column is None and columns.text is None:
        first = _pick(found, columns.smiles, _REACTANTS, "--smiles_column")
        last = _pick(found, None, _PRODUCT, "--text_column")
        more = names.get("reagents") if reagents else None

        def from_columns(row: Row) -> tuple[str, str]:
            extra = f".{_one_word(row, more)}" if more and row.get(more) else ""
            return _unmapped(_one_word(row, first) + extra), _unmapped(_one_word(row, last))

        return from_columns
    if column is None:
        raise DataError(f"no column {columns.text!r}; found {list(found)}; name one with --text_column")

    def from_reaction(row: Row) -> tuple[str, str]:
        # the extension behind a reaction (CXSMILES, as in USPTO's files) says which ions belong together
        match = re.fullmatch(r"(\S+)(\s+\|.*\|)?", _text(row, column))
        if match is None:
            raise RowError("text behind the reaction")
        parts = re.split(r"(?<!-)>", match[1])  # -> is a dative bond
        if len(parts) != 3 or not parts[0] or not parts[2]:
            raise RowError("not reactants>reagents>products")
        precursors = ".".join(filter(None, parts[:2])) if reagents else parts[0]
        return _unmapped(precursors), _unmapped(parts[2])

    return from_reaction


def _unmapped(smiles: str) -> str:
    return re.sub(r":\d+(?=\])", "", smiles)


def _canonical(smiles: str) -> str:
    return Chem.MolToSmiles(parse_smiles(smiles))


def _llamo_record(row: Row, smiles: str) -> Conversation:
    instruction = row.get("instruction")
    messages = (
        (Message("user", _unicode(instruction)),)
        if isinstance(instruction, str)
        else _messages(instruction, answered=False)
    )
    graph_at = None
    first = next(index for index, message in enumerate(messages) if message.role == "user")
    before, *after = messages[first].content.split(GRAPH_MARKER)
    if len(after) == 1:
        graph_at = (first, len(before))
        messages = (*messages[:first], Message("user", before + after[0]), *messages[first + 1 :])
    answer = Message("assistant", _text(row, "output"))
    more = row.get("input")
    if smiles != "input" and isinstance(more, str) and more.strip():
        question = messages[first]
        added = question._replace(content=f"{question.content}\n{_unicode(more.strip())}")
        messages = (*messages[:first], added, *messages[first + 1 :])
    return Conversation(_smiles_list(row.get(smiles)), (*messages, answer), graph_at)


def _messages(value: Any, *, answered: bool = True) -> tuple[Message, ...]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RowError("messages are not a list of objects")
    if not all(isinstance(message.get("content"), str) for message in value):
        raise RowError("a message without content")
    messages = tuple(Message(str(message.get("role")), _unicode(message["content"])) for message in value)
    if any(message.role not in ROLES for message in messages):
        raise RowError("unknown role")
    if answered and not any(message.role == "assistant" and message.content.strip() for message in messages):
        raise RowError("no answer")
    if not any(message.role == "user" for message in messages):
        raise RowError("no question")
    return messages


def _smiles_list(value: Any) -> tuple[str, ...]:
    smiles = [value] if isinstance(value, str) else value or []
    if not isinstance(smiles, list) or not all(isinstance(each, str) for each in smiles):
        raise RowError("smiles are not text")
    return tuple(map(_as_smiles, smiles))


def _molecule(row: Row, column: str) -> str:
    return _as_smiles(_text(row, column))


def _as_smiles(text: str) -> str:
    """A SMILES as it is; SELFIES (Krenn et al., 2020) as SMILES, by the library selfies."""
    if not is_selfies(text):
        return text
    try:
        import selfies
    except ImportError:
        raise RowError('SELFIES, which need a library: pip install "llamo_jax[selfies]"') from None
    try:
        return selfies.decoder(text.strip())
    except (selfies.DecoderError, ValueError) as error:
        raise RowError(f"not readable as SELFIES ({str(error).splitlines()[0][:80]})") from None


def _one_word(row: Row, column: str) -> str:
    """The SMILES of a cell: dots behind its end are no other molecules."""
    text = _molecule(row, column)
    if len(text.split()) != 1:
        raise RowError(f"text behind the SMILES in {column}")
    return text


def _targets(found: Sequence[str], asked: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    names = {name.lower(): name for name in found}
    if asked:
        return [_pick(found, name, (), "--target_column") for name in asked]
    guessed = [names[name] for name in known if name in names]
    if not guessed:
        raise DataError(f"no known property among the columns {list(found)}; name one with --target_column")
    return guessed


def _pick(found: Sequence[str], asked: str | None, guesses: Sequence[str], option: str) -> str:
    by_lower_case = {name.lower(): name for name in found}
    wanted = [asked] if asked else guesses
    for name in wanted:
        if name.lower() in by_lower_case:
            return by_lower_case[name.lower()]
    raise DataError(f"no column {' or '.join(map(repr, wanted))}; found {list(found)}; name one with {option}")


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"empty {column}")
    return _unicode(value.strip())


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError("not valid Unicode") from None
    return text


def _number(row: Row, column: str) -> str:
    value = row.get(column)
    text = value.strip() if isinstance(value, str) else "" if value is None else repr(value)
    try:
        finite = math.isfinite(float(text))
    except ValueError:
        raise RowError(f"{column} is not a number") from None
    if not finite:
        raise RowError(f"{column} is not a number")
    return text


def _yes_no(row: Row, column: str) -> str:
    value = str(row.get(column)).strip().lower()
    if value in ("1", "1.0", "true", "yes"):
        return "Yes"
    if value in ("0", "0.0", "false", "no"):
        return "No"
    raise RowError(f"{column} is neither yes nor no")
