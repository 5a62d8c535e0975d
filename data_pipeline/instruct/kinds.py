"""Kinds of conversation: what each asks of its teacher, and how many molecules it shows."""

from typing import NamedTuple


class Kind(NamedTuple):
    """molecules: that a conversation shows; share: of all conversations, unless asked otherwise; task: for teachers."""

    molecules: int
    share: float
    task: str


KINDS: dict[str, Kind] = {
    "description": Kind(
        1,
        0.25,
        "The user asks for a description of the molecule and goes on with one or two questions about what the "
        "description mentions. The description tells, in sentences of your own, what kind of compound it is, its "
        "functional groups and rings, and what the given text says beyond the structure.",
    ),
    "structure": Kind(
        1,
        0.25,
        "The user asks two to four precise questions about the structure: functional groups, rings, elements, counts, "
        "charge, formula, mass or stereochemistry, some of them to be answered with yes or no and a reason.",
    ),
    "property": Kind(
        1,
        0.15,
        "The user asks what the structure means for behaviour: solubility, lipophilicity, hydrogen bonding, "
        "permeability or drug-likeness. Answers reason from the given descriptors and groups, name the numbers that "
        "they rest on, and do not claim a measurement.",
    ),
    "comparison": Kind(
        2,
        0.15,
        "Two molecules are shown. The user asks how they differ and what they share. Every sentence of an answer says "
        'which molecule it is about: "the first molecule", "the second molecule" or "both molecules".',
    ),
    "correction": Kind(
        1,
        0.1,
        "The user takes something for granted that is false (a group, ring, element, count or charge that the molecule "
        "does not have). The assistant says so first, politely, then tells what is there instead.",
    ),
    "unknown": Kind(
        1,
        0.1,
        "The user asks for something that neither structure nor text tells (a melting point, a price, a supplier, a "
        "clinical dose, who made it first). The assistant says that it cannot be known from the structure, invents "
        "nothing, and offers a related fact that the structure does tell.",
    ),
}
"""In the order in which reports list them; the shares add up to 1."""

RULES = """\
You write training conversations between a user and an assistant that sees molecules as graphs. You get a JSON object: \
the kind of conversation, what it shall be like ("task"), and the molecules with a description by people, an IUPAC \
name (where there are any) and facts computed by RDKit.

- State nothing about a structure that the facts or the text do not say; copy numbers exactly, with their units.
- Name functional groups and rings as the facts do. Do not write SMILES, InChI or identifiers, in no turn.
- The user does not see the facts and does not mention them, nor the description, nor this task.
- The user begins, roles alternate, the assistant ends. Answers are one to four sentences of plain English.
- Do not only repeat the given description; do not speak of yourself.

Answer with a JSON object and nothing else: {"messages": [{"role": "user", "content": "…"}, \
{"role": "assistant", "content": "…"}, …]}"""
"""The system message of every request. When it, a task or an example changes, raise PROMPT_VERSION."""

PROMPT_VERSION = 1
