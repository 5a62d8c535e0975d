"""Raw examples: molecules and what is said about them, before any tokenizer or feature."""

from typing import NamedTuple

ROLES = ("system", "user", "assistant")


class Message(NamedTuple):
    """One turn of a conversation; `role` is one of ROLES."""

    role: str
    content: str


class Conversation(NamedTuple):
    """A conversation that shows the molecules `smiles` (zero, one or several).

    graph_at: (message, character) before which their graphs stand; None: at the beginning of the first user turn.
    """

    smiles: tuple[str, ...]
    messages: tuple[Message, ...]
    graph_at: tuple[int, int] | None = None
