"""Tables as text: how a file is written (encoding, separator, quotes, decimal commas) is found from the file itself.

People's tables come from instruments, from spreadsheets of several countries and from other programs, and their names
say little: tabs in .csv, semicolons, UTF-16, Windows' cp1252, Mac's ends of lines, tab-separated text with quotation
marks that are text (ChEBI-20) or quotes (pandas, spreadsheets). What is found can be overruled.

Lines are read one by one with bounded memory, so flipped bytes, unbalanced quotes or a line of many megabytes cost the
rows they hit and no others; a parser of whole files would lose all that follow.
"""

import codecs
import csv
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data_pipeline.errors import DataError

MAX_ROW_BYTES = 2**22
"""A longer row is rejected unread; the longest conversation that a model could be given is far below."""

MAX_QUOTED_LINES = 1000
"""A quoted field that spans more lines counts as an unbalanced quote."""

QUOTING = ("minimal", "none")
"""How tables may be quoted: where a field needs it (RFC 4180), or never: quotation marks are text."""

_SAMPLE = 2**20  # bytes that separator and quotes are found from
_EVIDENCE = 2**26  # bytes that are looked at for the encoding: the first accent may come late
_SAMPLE_ROWS = 200
_SURE = 1000  # letters of several bytes: the file is UTF-8
_CHUNK = 2**16
_SEPARATORS = (",", ";", "\t", "|")
_NO_CP1252 = {0x81, 0x8D, 0x8F, 0x90, 0x9D, 0xFE, 0xFF}  # undefined there, or a byte order mark: damage
_UNDECODABLE = re.compile("[\ud800-\udfff\ufffd]")
_COMMA_NUMBER = re.compile(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?")
_POINT_NUMBER = re.compile(r"[-+]?\d*\.\d+(?:[eE][-+]?\d+)?")

Row = dict[str, Any]


class BadRow(NamedTuple):
    """A row that could not be read: a short reason that can be counted, and the beginning of the text."""

    reason: str
    text: str


class TableOptions(NamedTuple):
    """How tables are written, where that shall not be found out. encoding: a name that Python knows."""

    delimiter: str | None = None
    quoting: str | None = None
    encoding: str | None = None


class Dialect(NamedTuple):
    """How a table is written."""

    encoding: str
    newline: str
    delimiter: str
    quoted: bool
    decimal_comma: bool
    skipped: int  # lines before the header
    natural: str  # the delimiter that the file's name says

    def __str__(self) -> str:
        """What is unusual about it; "" for UTF-8 with what the name says, commas quoted and tabs not."""
        name = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}.get(self.delimiter, repr(self.delimiter))
        parts = [
            self.encoding if self.encoding not in ("utf-8", "utf-8-sig") else "",
            "" if self.delimiter == self.natural else f"fields between {name}",
            "quoted" if self.delimiter == "\t" and self.quoted else "",
            "quotation marks are text" if self.delimiter == "," and not self.quoted else "",
            "decimal commas" if self.decimal_comma else "",
        ]
        return ", ".join(filter(None, parts))


def read_table(
    path: Path, open_file: Callable[[Path], BinaryIO], options: TableOptions, say: Callable[[str], Any]
) -> Iterator[Row | BadRow]:
    """The rows of a table with a header, by its names; `say` is told how the file is written, if that is unusual.

    Raises DataError if it has no rows, or two columns are called the same.
    """
    dialect = find_dialect(path, open_file, options)
    if str(dialect):
        say(f"{path.name}: read as {dialect} (--encoding, --delimiter and --quoting overrule)")
    lines = _Pushback(text_lines(path, open_file, dialect.encoding, dialect.newline))
    for _ in range(dialect.skipped):
        next(lines)
    fields = _Fields(dialect, lines)
    header = _header(path, lines, fields)
    for line in lines:
        if isinstance(line, BadRow):
            yield line
        elif line:
            yield fields.row(header, line)


def text_lines(
    path: Path, open_file: Callable[[Path], BinaryIO], encoding: str, newline: str
) -> Iterator[str | BadRow]:
    """Lines without their ends, empty ones included; undecodable and endless ones are bad rows."""
    errors = "replace" if encoding.startswith("utf-16") or encoding.startswith("utf-32") else "surrogateescape"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    waiting: list[str] = []  # parts of a line whose end has not come
    size = 0
    too_long = ""

    def ended(text: str) -> str | BadRow:
        nonlocal too_long
        if too_long:
            beginning, too_long = too_long, ""
            return BadRow(f"longer than {MAX_ROW_BYTES:,} bytes", beginning)
        text = text.rstrip("\r\n")
        if _UNDECODABLE.search(text):
            return BadRow(f"not {encoding.removesuffix('-sig').upper()}", text[:200].encode(errors="replace").decode())
        return text

    with open_file(path) as file:
        while True:
            data = file.read(_CHUNK)
            for place, part in enumerate(decoder.decode(data, final=not data).split(newline)):
                if place:  # an end of line stood before it
                    yield ended("".join(waiting))
                    waiting, size = [], 0
                size += len(part)
                if size > MAX_ROW_BYTES:
                    too_long = too_long or "".join([*waiting, part])[:200]
                    waiting = []
                elif part:
                    waiting.append(part)
            if not data:
                break
    if waiting or too_long:
        yield ended("".join(waiting))


def find_dialect(path: Path, open_file: Callable[[Path], BinaryIO], options: TableOptions) -> Dialect:
    """How a table is written; raises DataError if an option cannot be."""
    encoding = options.encoding or find_encoding(path, open_file)
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise DataError(f"encoding {encoding!r} is not known; such as utf-8, utf-16, cp1252 or latin-1") from None
    if options.delimiter is not None and len(options.delimiter) != 1:
        raise DataError(f"delimiter {options.delimiter!r} is not one character")
    if options.quoting not in (None, *QUOTING):
        raise DataError(f"quoting {options.quoting!r} is not one of {', '.join(QUOTING)}")
    with open_file(path) as file:
        sample = file.read(_SAMPLE)
    whole = len(sample) < _SAMPLE
    text = codecs.getincrementaldecoder(encoding)("replace").decode(sample)
    end = re.search(r"\r\n|\r|\n", text)
    newline = "\r" if end and end.group() == "\r" else "\n"  # of a Mac's tables; line breaks in cells are \n there
    lines = [line.rstrip("\r") for line in text.split(newline)]
    if not whole:
        lines.pop()  # it may be cut
    first = re.fullmatch(r'"?sep=(.)"?', lines[0], re.IGNORECASE) if lines else None  # for Excel
    lines = lines[1:] if first else lines
    natural = "," if ".csv" in path.suffixes else "\t"
    delimiter = options.delimiter or (first.group(1) if first else _delimiter(lines, natural))
    quoted = options.quoting == "minimal" if options.quoting else _quoted(lines, delimiter)
    comma = _decimal_comma(lines, delimiter, quoted)
    return Dialect(encoding, newline, delimiter, quoted, comma, 1 if first else 0, natural)


_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def find_encoding(path: Path, open_file: Callable[[Path], BinaryIO]) -> str:
    """A byte order mark's; UTF-16 where every other byte is zero; cp1252 where hardly anything is UTF-8; UTF-8."""
    with open_file(path) as file:
        sample = file.read(_CHUNK)
        for mark, name in _MARKS:
            if sample.startswith(mark):
                return name
        zeros = [part.count(0) / max(1, len(part)) for part in (sample[::2], sample[1::2])]
        if max(zeros) > 0.3 and min(zeros) < 0.05:
            return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        letters = others = 0  # bytes that are letters in cp1252 and no UTF-8; what speaks against it
        for _ in range(_EVIDENCE // _CHUNK):
            for character in re.findall(r"[^\x00-\x7f]", decoder.decode(sample)):
                lone = 0xDC80 <= ord(character) <= 0xDCFF and ord(character) - 0xDC00 not in _NO_CP1252
                letters, others = letters + lone, others + (not lone)
            sample = file.read(_CHUNK)
            if not sample or others > _SURE:
                break
    # letters of several bytes are hardly there by chance, and damage is not all letters: a few among many are
    return "cp1252" if letters > 10 * others else "utf-8"


def _delimiter(lines: Sequence[str], natural: str) -> str:
    """The separator by which most rows have as many fields as the header; that of the file's name where it does."""
    scores: dict[str, float] = {}
    for candidate in (natural, *_SEPARATORS):
        rows = list(_split(lines, candidate, _quoted(lines, candidate)))
        if not rows or len(rows[0]) < 2:
            continue
        scores.setdefault(candidate, sum(len(row) == len(rows[0]) for row in rows) / len(rows))
    best = max(scores, key=lambda candidate: scores[candidate], default=natural)
    # text is full of commas: another separator than the name says needs nearly all rows
    if natural in scores and (scores[natural] >= 0.5 or scores[best] < 0.9):
        return natural
    return best if scores.get(best, 0) >= 0.5 else natural


def _quoted(lines: Sequence[str], delimiter: str) -> bool:
    """Whether quotation marks around fields are quotes.

    With commas always. With other separators, if every mark of the first rows is one, or doubled inside of some, as
    programs write them; and if some fields need them (a separator, an end of line or a mark is inside), or all texts
    have them.
    """
    if delimiter == ",":
        return True
    text = "\n".join(lines)
    if '"' not in text:
        return False
    end = re.escape(delimiter)
    field = re.compile(rf'("(?:[^"]|"")*"|[^"{end}\n]*)({end}|\n|$)')
    texts: list[str] = []
    place = rows = 0
    while rows < _SAMPLE_ROWS and place < len(text):
        match = field.match(text, place)
        if match is None:
            return False
        if rows and re.search("[A-Za-z]", match[1]):
            texts.append(match[1])
        rows += match[2] == "\n"
        place = match.end()
    quoted = [each for each in texts if each.startswith('"')]
    needed = any(re.search(rf'""|\n|{end}', each[1:-1]) for each in quoted)
    return needed or 0 < len(quoted) == len(texts)


def _split(lines: Sequence[str], delimiter: str, quoted: bool) -> Iterator[list[str]]:
    """The first rows of a sample."""
    rows: Iterator[list[str]]
    if quoted:
        csv.field_size_limit(MAX_ROW_BYTES)
        rows = csv.reader((line + "\n" for line in lines), delimiter=delimiter)
    else:
        rows = (line.split(delimiter) for line in lines if line)
    found = 0
    while found < _SAMPLE_ROWS:
        try:
            row = next(rows, None)
        except csv.Error:
            continue
        if row is None:
            return
        if row:
            found += 1
            yield row


def _decimal_comma(lines: Sequence[str], delimiter: str, quoted: bool) -> bool:
    """Whether 3,5 is a number: some fields are such numbers, none has a point, and they are no thousands (1,204)."""
    if delimiter not in (";", "\t"):
        return False
    fields = [field for row in _split(lines, delimiter, quoted) for field in row]
    found = [field for field in fields if _COMMA_NUMBER.fullmatch(field)]
    thousands = all(re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", field) for field in found)
    return bool(found) and not thousands and not any(_POINT_NUMBER.fullmatch(field) for field in fields)


class _Pushback(Iterator[str | BadRow]):
    """An iterator to which items can be given back."""

    def __init__(self, lines: Iterator[str | BadRow]):
        self._lines = lines
        self._returned: deque[str | BadRow] = deque()

    def __next__(self) -> str | BadRow:
        return self._returned.popleft() if self._returned else next(self._lines)

    def push(self, lines: list) -> None:
        """The lines come next, in their order."""
        self._returned.extendleft(reversed(lines))


class _Fields:
    """Rows from lines."""

    def __init__(self, dialect: Dialect, lines: _Pushback):
        self._dialect, self._lines = dialect, lines
        csv.field_size_limit(MAX_ROW_BYTES)

    def header(self, line: str) -> list[str]:
        """The names of the columns; raises csv.Error."""
        if not self._dialect.quoted:
            return line.split(self._dialect.delimiter)
        return next(csv.reader([line], delimiter=self._dialect.delimiter))

    def row(self, header: list[str], line: str) -> Row | BadRow:
        """The row that begins with `line`."""
        if not self._dialect.quoted:
            return self._named(header, line.split(self._dialect.delimiter), line)
        return self._quoted_row(header, line)

    def _quoted_row(self, header: list[str], line: str) -> Row | BadRow:
        """Takes more lines inside an open quote, and gives them back if it never ends."""
        used, size = [line], len(line)
        unended = False

        def physical() -> Iterator[str]:
            nonlocal unended, size
            yield line + "\n"
            for more in self._lines:  # asked for only inside an open quote
                size += 0 if isinstance(more, BadRow) else len(more)
                if isinstance(more, BadRow) or len(used) == MAX_QUOTED_LINES or size > MAX_ROW_BYTES:
                    self._lines.push([more])
                    break
                used.append(more)
                yield more + "\n"
            unended = True

        try:
            fields = next(csv.reader(physical(), delimiter=self._dialect.delimiter))
            row = self._named(header, fields, line)
        except csv.Error:
            row = BadRow(f"not {'CSV' if self._dialect.delimiter == ',' else 'a row of quoted fields'}", line[:200])
        # one lost quote costs its own row: the lines that it swallowed are given back
        if unended or (isinstance(row, BadRow) and len(used) > 1):
            self._lines.push(used[1:])
            return BadRow("unbalanced quote", line[:200])
        return row

    def _named(self, header: list[str], fields: list[str], line: str) -> Row | BadRow:
        if len(fields) != len(header):
            return BadRow("wrong number of columns", line[:200])
        if self._dialect.decimal_comma:
            fields = [field.replace(",", ".") if _COMMA_NUMBER.fullmatch(field) else field for field in fields]
        return dict(zip(header, fields, strict=True))


def _header(path: Path, lines: _Pushback, fields: _Fields) -> list[str]:
    line = next((line for line in lines if line), None)
    if line is None:
        raise DataError(f"{path}: no rows")
    if isinstance(line, BadRow):
        raise DataError(f"{path}: its header is {line.reason}")
    try:
        names = [name.strip() for name in fields.header(line)]
    except csv.Error as error:
        raise DataError(f"{path}: its header cannot be read ({error})") from None
    check_names(path, names)
    return names


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raises DataError if two columns are called the same, whatever their case."""
    seen: dict[str, str] = {}
    for name in filter(None, names):
        other = seen.setdefault(name.lower(), name)
        if sum(each.lower() == name.lower() for each in names) > 1:
            raise DataError(f"{path}: two columns are called {other!r}; rename one")
