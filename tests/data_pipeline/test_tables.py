"""Tables as people have them: each is read as what it means, and what was unusual is said."""

import csv
import gzip
import io
import json
import resource
import subprocess
import sys

import pytest

from data_pipeline import files
from data_pipeline.errors import DataError
from data_pipeline.files import BadRow, TableOptions, read_rows

ROWS = [
    {"smiles": "CCO", "gap": "3.5", "note": "boils at 78 °C, naïve"},
    {"smiles": "c1ccccc1", "gap": "-0.25", "note": 'a "ring"; flat'},
    {"smiles": "O", "gap": "12", "note": "two\nlines"},
]
PLAIN = [{**row, "note": row["note"].replace("\n", " ")} for row in ROWS]


def written(rows, *, decimal=".", **options):
    """As Python's csv module writes them, which is how pandas and spreadsheets do."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows({**row, "gap": row["gap"].replace(".", decimal)} for row in rows)
    return file.getvalue()


def joined(rows, delimiter, end="\n"):
    return end.join(delimiter.join(fields) for fields in [list(rows[0]), *(row.values() for row in rows)]) + end


CASES = {
    "excel for mac": ("a.csv", written(ROWS, lineterminator="\r", quoting=csv.QUOTE_ALL).encode(), ROWS, ""),
    "german excel": ("a.csv", written(ROWS, delimiter=";", decimal=",").encode("cp1252"), ROWS,
                     "cp1252, fields between semicolons, decimal commas"),
    "german excel, utf-8": ("a.csv", b"\xef\xbb\xbf" + written(ROWS, delimiter=";", decimal=",").encode(), ROWS,
                            "fields between semicolons, decimal commas"),
    "sep=": ("a.csv", ("sep=;\r\n" + written(ROWS, delimiter=";")).encode(), ROWS, "fields between semicolons"),
    "tabs in .csv": ("a.csv", written(ROWS, delimiter="\t").encode(), ROWS, "fields between tabs, quoted"),
    "tabs and text": ("a.csv", joined(PLAIN, "\t").encode(), PLAIN, "fields between tabs"),
    "excel's unicode text": ("a.txt", written(ROWS, delimiter="\t").encode("utf-16"), ROWS,
                             "utf-16, quoted"),
    "utf-16 without a mark": ("a.csv", written(ROWS).encode("utf-16-le"), ROWS, "utf-16-le"),
    "utf-16, the other way": ("a.csv", written(ROWS).encode("utf-16-be"), ROWS, "utf-16-be"),
    "cp1252": ("a.csv", written(ROWS).encode("cp1252"), ROWS, "cp1252"),
    "pandas .tsv": ("a.tsv", written(ROWS, delimiter="\t", lineterminator="\n").encode(), ROWS, "read as quoted"),
    "every text quoted": ("a.tsv", written(ROWS, delimiter="\t", quoting=csv.QUOTE_ALL).encode(), ROWS, "quoted"),
    "chebi": ("a.tsv", joined([*PLAIN, {"smiles": "C", "gap": "1", "note": '"Marsh gas" is one name.'}], "\t").encode(),
              [*PLAIN, {"smiles": "C", "gap": "1", "note": '"Marsh gas" is one name.'}], ""),
    "chebi, names": ("a.tsv", joined([*PLAIN, {"smiles": "C", "gap": "1", "note": '"methane"'}], "\t").encode(),
                     [*PLAIN, {"smiles": "C", "gap": "1", "note": '"methane"'}], ""),
    "chebi, open": ("a.tsv", joined([{"smiles": "C", "gap": "1", "note": '"never ended'}, *PLAIN], "\t").encode(),
                    [{"smiles": "C", "gap": "1", "note": '"never ended'}, *PLAIN], ""),
    "commas in .tsv": ("a.tsv", written(ROWS).encode(), ROWS, "fields between commas"),
    "bars": ("a.txt", joined(PLAIN, "|").encode(), PLAIN, "fields between bars"),
    "windows": ("a.csv", written(ROWS, lineterminator="\r\n").encode(), ROWS, ""),
    "packed": ("a.csv.gz", gzip.compress(written(ROWS, delimiter=";", decimal=",").encode()), ROWS, "decimal commas"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_tables_of_other_programs(tmp_path, case):
    name, content, expected, said = CASES[case]
    (tmp_path / name).write_bytes(content)
    told = []
    assert list(read_rows(tmp_path / name, say=told.append)) == expected
    assert [said in text for text in told] == [True] * bool(said)


def test_what_is_found_can_be_overruled(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes('smiles\tnote\nC\t"a"\nO\tb°\n'.encode("latin-1"))
    assert [row["note"] for row in read_rows(path)] == ['"a"', "b°"]
    assert [row["note"] for row in read_rows(path, TableOptions(quoting="minimal"))] == ["a", "b°"]
    assert list(read_rows(path, TableOptions(encoding="utf-8")))[1].reason == "not UTF-8"
    assert next(read_rows(path, TableOptions(delimiter=","))) == {"smiles\tnote": 'C\t"a"'}
    for options, message in (
        (TableOptions(encoding="klingon"), "encoding 'klingon' is not known"),
        (TableOptions(delimiter="ab"), "delimiter 'ab' is not one character"),
        (TableOptions(quoting="some"), "quoting 'some' is not one of minimal, none"),
    ):
        with pytest.raises(DataError, match=message):
            list(read_rows(path, options))


def test_one_accent_among_utf8_is_damage(tmp_path):
    """Where letters of several bytes are right, a byte that is none is no sign of another encoding."""
    path = tmp_path / "a.csv"
    path.write_bytes("smiles,note\nC,é\nO,".encode() + b"\xe9\nN,x\n")
    first, second, third = read_rows(path)
    assert (first["note"], second.reason, third["note"]) == ("é", "not UTF-8", "x")


def test_the_first_accent_may_come_late(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"smiles,note\n" + b"C,plain text\n" * 200_000 + b"O,78 \xb0C\n")
    *_, last = read_rows(path)
    assert last == {"smiles": "O", "note": "78 °C"}


def test_thousands_are_no_decimals(tmp_path):
    """1,204 may be either: it is left to the task, which refuses it."""
    path = tmp_path / "a.csv"
    path.write_text("smiles;gap\nC;1,204\nO;2,500\n")
    assert [row["gap"] for row in read_rows(path)] == ["1,204", "2,500"]


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_key_that_stands_twice_is_no_row(tmp_path, suffix):
    lines = ['{"smiles": "C", "smiles": "O"}', '{"smiles": "N", "deep": {"a": 1, "a": 2}}', '{"smiles": "CC"}']
    path = tmp_path / f"a.{suffix}"
    path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{', '.join(lines)}]")
    first, second, third = read_rows(path)
    assert (first.reason, second.reason, third) == ("a key twice", "a key twice", {"smiles": "CC"})


def test_json_lists_are_read_in_pieces(tmp_path):
    rows = [{"smiles": "C" * (1 + i % 7), "text": "é" * (i % 5000), "n": i} for i in range(300)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    assert list(read_rows(path)) == rows
    path.write_text(" [ ] ")
    with pytest.raises(DataError, match="no rows"):
        list(read_rows(path))
    path.write_text('[1, "a", null, 2]')
    assert [row.text for row in read_rows(path)] == ["1", "'a'", "None", "2"]


def test_smi_files_have_names_behind(tmp_path):
    path = tmp_path / "a.smi"
    path.write_text("CCO ethanol\nO\tthe water of life\nC\n")
    assert [(row["smiles"], row["name"]) for row in read_rows(path)] == [
        ("CCO", "ethanol"), ("O", "the water of life"), ("C", "")]  # fmt: skip
    path.write_text("SMILES Name\nCCO ethanol\n")
    assert [row["smiles"] for row in read_rows(path)] == ["CCO"]


def test_parquet_columns_of_every_kind(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "smiles": ["CCO", "O"],
            "label": pyarrow.array([0.1, None], pyarrow.float32()),
            "half": pyarrow.array([0.5, 2.0], pyarrow.float16()),
            "wide": [0.1, 1e-7],
            "when": pyarrow.array([1_700_000_000_000_000_001, None], pyarrow.timestamp("ns")),
            "text": pyarrow.array(["é".encode(), b"b"], pyarrow.binary()),
            "kind": pyarrow.array(["x", "x"]).dictionary_encode(),
            "many": [["a"], []],
            "count": [3, None],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    first, second = read_rows(tmp_path / "a.parquet")
    assert repr(first["label"]) == "0.1"
    assert first["when"].startswith("2023-11-14 22:13:20.000000001")
    assert (first["text"], first["kind"], first["many"], first["half"], first["wide"]) == ("é", "x", ["a"], 0.5, 0.1)
    assert (second["label"], second["when"], second["count"]) == (None, None, None)
    parquet.write_table(pyarrow.table({"smiles": ["C", "O"], "data": [b"\xff\xfe", b"ok"]}), tmp_path / "b.parquet")
    bad, good = read_rows(tmp_path / "b.parquet")
    assert (bad.reason, good["data"]) == ("data is bytes, and no text", "ok")
    parquet.write_table(pyarrow.table({"smiles": ["C"], "SMILES": ["O"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="two columns are called 'smiles'"):
        list(read_rows(tmp_path / "c.parquet"))


def bombs(folder):
    """Files of a megabyte or less that unpack to gigabytes."""
    import pyarrow
    from pyarrow import parquet

    long = b"x" * (15 * 2**20)
    rows = {"a.csv.gz": b"C," + long + b"\n", "a.jsonl.gz": b'{"smiles": "C", "text": "' + long + b'"}\n'}
    for name, row in rows.items():
        with gzip.open(folder / name, "wb", compresslevel=1) as file:
            file.write(b"smiles,text\n" if "csv" in name else b"")
            for _ in range(25):
                file.write(row)
    with gzip.open(folder / "a.json.gz", "wb", compresslevel=1) as file:
        file.write(b"[")
        file.writelines(b'{"smiles": "C", "text": "x"},\n' * 20_000 for _ in range(10))
        file.write(b'{"smiles": "C"}]')
    with gzip.open(folder / "quote.csv.gz", "wb", compresslevel=1) as file:
        file.write(b'smiles,text\nC,"open\n')
        file.writelines(b"y" * 1000 + b"\n" for _ in range(15_000))
    array = pyarrow.array(["z" * (3 * 2**20)] * 2000).dictionary_encode()
    parquet.write_table(pyarrow.table({"smiles": ["C"] * 2000, "text": array}), folder / "a.parquet")


def test_memory_is_bounded_by_bytes(tmp_path):
    """Each bomb in a process that may take 1.5 GB; every row of it is accounted for."""
    bombs(tmp_path)
    code = (
        "import sys, json; from pathlib import Path; from collections import Counter\n"
        "from data_pipeline.files import read_rows, BadRow\n"
        "import pyarrow.parquet\n"
        "counts = Counter('bad' if isinstance(row, BadRow) else 'good' for row in read_rows(Path(sys.argv[1])))\n"
        "print(json.dumps(counts))"
    )
    limit = 3 * 2**29  # of addresses, which is more than what is touched
    counts = {}
    for path in sorted(tmp_path.iterdir()):
        done = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )  # fmt: skip
        assert done.returncode == 0, (path.name, done.stderr[-500:])
        counts[path.name] = json.loads(done.stdout)
    assert counts == {
        "a.csv.gz": {"bad": 25},
        "a.jsonl.gz": {"bad": 25},
        "a.json.gz": {"good": 200_001},
        "quote.csv.gz": {"bad": 15_001},
        "a.parquet": {"good": 2000},
    }


def test_a_parquet_column_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr(files, "_MAX_COLUMN_BYTES", 1000)
    parquet.write_table(pyarrow.table({"smiles": ["C" * 2000]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'smiles' has [26],\d+ bytes in one row group"):
        list(read_rows(tmp_path / "a.parquet"))
    monkeypatch.undo()
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 1000)
    (row,) = read_rows(tmp_path / "a.parquet")
    assert isinstance(row, BadRow)
    assert row == ("longer than 1,000 bytes", "column smiles")


def test_lists_of_numbers_are_no_decimals(tmp_path):
    """A table whose other numbers have points."""
    path = tmp_path / "a.csv"
    path.write_text("smiles;gap;rings\nC;3.5;1,2\nO;2.5;1,3\n")
    assert [(row["gap"], row["rings"]) for row in read_rows(path)] == [("3.5", "1,2"), ("2.5", "1,3")]
