"""What a row gives: records, labels that are missing, and reasons why there are no others; nothing else gets lost."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from data_pipeline.conversation import Conversation
from data_pipeline.errors import RowError
from data_pipeline.files import BadRow
from data_pipeline.molecule import InvalidMoleculeError
from data_pipeline.records import Record, featurized
from data_pipeline.tasks import Missing, Row, RowReader


class Refused(NamedTuple):
    """An example that cannot be used: a short reason that can be counted, and more of it for people."""

    reason: str
    detail: str = ""


def examples_of(
    read: RowReader, row: Row | BadRow, featurize: Callable[[Conversation], Record] = featurized
) -> Iterator[Record | Missing | Refused]:
    """`read.examples` outcomes, whatever the row is; `featurize` makes a conversation's record."""
    if isinstance(row, BadRow):
        yield from [Refused(row.reason, row.text)] * read.examples
        return
    try:
        conversations = read(row)
    except RowError as error:
        yield from [Refused(error.reason)] * read.examples
        return
    except InvalidMoleculeError as error:
        yield from [Refused("invalid SMILES", str(error))] * read.examples
        return
    for found in conversations:
        if isinstance(found, Missing):
            yield found
        elif isinstance(found, RowError):
            yield Refused(found.reason)
        else:
            try:
                yield featurize(found)
            except InvalidMoleculeError as error:
                yield Refused("invalid SMILES", str(error))
