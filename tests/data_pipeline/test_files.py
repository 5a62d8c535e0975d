"""File formats, and what damage to files costs: the rows it hits, never the job."""

import gzip
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import tables
from data_pipeline.errors import DataError
from data_pipeline.files import BadRow, read_rows

ROWS = [{"smiles": "CCO", "text": 'An "alcohol", clear.'}, {"smiles": "O", "text": "Water.\n\nWet."}]


def rows_of(path):
    return list(read_rows(path))


def test_every_format_gives_the_same_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    quoted = 'smiles,text\nCCO,"An ""alcohol"", clear."\nO,"Water.\n\nWet."\n'
    (tmp_path / "a.csv").write_text(quoted)
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + quoted.replace("\n", "\r\n").encode())
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in ROWS))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert rows_of(path) == ROWS, path
    (tmp_path / "a.tsv").write_text('smiles\ttext\nCCO\tAn "alcohol\n')
    assert rows_of(tmp_path / "a.tsv") == [{"smiles": "CCO", "text": 'An "alcohol'}]


def test_torch_files_of_records_and_of_columns(tmp_path):
    import torch

    torch.save(ROWS, tmp_path / "records.pt")
    torch.save({key: [row[key] for row in ROWS] for key in ROWS[0]}, tmp_path / "columns.pt")
    for path in sorted(tmp_path.iterdir()):
        assert rows_of(path) == ROWS
    torch.save([random.Random(0)], tmp_path / "code.pt")
    with pytest.raises(DataError, match="torch refuses to load it safely"):
        rows_of(tmp_path / "code.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "records.pt").read_bytes()[:200])
    with pytest.raises(DataError, match="torch refuses"):
        rows_of(tmp_path / "cut.pt")
    torch.save([1, 2], tmp_path / "numbers.pt")
    with pytest.raises(DataError, match="neither a list of records"):
        rows_of(tmp_path / "numbers.pt")


def test_torch_files_of_pytorch_geometric(tmp_path):
    """The layout of an InMemoryDataset, pickled by classes of the same names."""
    import sys
    import types

    import torch

    names = {"torch_geometric.data.data": "Data", "torch_geometric.data.storage": "GlobalStorage"}
    made = {}
    modules = {"torch_geometric": types.ModuleType("torch_geometric")}
    modules["torch_geometric.data"] = types.ModuleType("torch_geometric.data")
    for module, name in names.items():
        made[name] = type(name, (), {"__module__": module})
        modules[module] = types.ModuleType(module)
        setattr(modules[module], name, made[name])
    storage, data = made["GlobalStorage"](), made["Data"]()
    columns = {key: [row[key] for row in ROWS] for key in ROWS[0]}
    storage._mapping = {**columns, "x": torch.zeros(5, 9), "edge_index": torch.zeros(2, 4)}
    data._store = storage
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        torch.save((data, {"x": torch.tensor([0, 3, 5])}), tmp_path / "a.pt")
    assert rows_of(tmp_path / "a.pt") == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"x", "unknown format '.xlsx'"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"smiles,text\n", "no rows"),
        ("a.csv", b"smiles,\x81\n", "its header is not UTF-8"),
        ("a.json", b"[{", "not JSON"),
        ("a.json", b"[{} {}]", "a comma or ] is missing"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b'[{"a": "\xff"}]', "not UTF-8"),
        ("a.csv", b"smiles,Text,text\nC,a,b\n", "two columns are called 'Text'"),
        ("a.json", b"{}", "not a JSON list"),
        ("a.parquet", b"PAR1 no", "not readable as Parquet"),
        ("a.csv.gz", b"not gzip", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        rows_of(tmp_path / "absent.csv")


def test_bad_rows_are_single_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_ROW_BYTES", 2**16)
    lines = [b"C,good", b"C,\x81", b"C", b"C," + b"x" * 2**18, b"C,a,b", b'C,"open', b"C,good", b"\0,\0"]
    (tmp_path / "a.csv").write_bytes(b"smiles,text\n" + b"\n".join(lines))
    found = rows_of(tmp_path / "a.csv")
    reasons = [row.reason if isinstance(row, BadRow) else "" for row in found]
    columns = "wrong number of columns"
    assert reasons == ["", "not UTF-8", columns, "longer than 65,536 bytes", columns, "unbalanced quote", "", ""]
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": \n[1]\n' + b"[" * 100_000 + b'\n{"a": 2}')
    reasons = [row.reason if isinstance(row, BadRow) else "" for row in read_rows(tmp_path / "a.jsonl")]
    assert reasons == ["", "not JSON", "not a JSON object", "longer than 65,536 bytes", ""]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("aC", max_size=3)), st.integers(1, 5))
def test_lines_are_lines_wherever_a_read_ends(tmp_path_factory, lines, chunk):
    """Also where a piece is the same object as the one before it, as Python's empty and short strings are."""
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_CHUNK", chunk)
        assert list(tables.text_lines(path, lambda at: at.open("rb"), "utf-8", "\n")) == lines


def test_smi_files(tmp_path):
    (tmp_path / "a.smi").write_text("C\nCC\nC\n\nCCN amine\n  \n")
    assert [(row["smiles"], row["name"]) for row in rows_of(tmp_path / "a.smi")] == [
        ("C", ""), ("CC", ""), ("C", ""), ("CCN", "amine")
    ]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["csv", "tsv", "jsonl"]), st.binary(max_size=300))
def test_any_bytes_are_rows_or_a_clear_error(tmp_path_factory, suffix, content):
    path = tmp_path_factory.mktemp("bytes") / f"a.{suffix}"
    path.write_bytes(content)
    try:
        rows = rows_of(path)
    except DataError:
        return
    assert rows
    assert all(isinstance(row, dict | BadRow) for row in rows)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_flipped_bytes_do_not_swallow_other_rows(tmp_path_factory, data):
    lines = [f"C{'C' * i},text {i}".encode() for i in range(40)]
    hit = data.draw(st.integers(0, 39))
    position = data.draw(st.integers(0, len(lines[hit]) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte not in b"\r\n"))
    lines[hit] = lines[hit][:position] + bytes([value]) + lines[hit][position + 1 :]
    path = tmp_path_factory.mktemp("flipped") / "a.csv"
    path.write_bytes(b"smiles,text\n" + b"\n".join(lines) + b"\n")
    found = rows_of(path)
    assert len(found) == 40
    whole = [row["text"] for row in found if not isinstance(row, BadRow)]
    assert {f"text {i}" for i in range(40) if i != hit} <= set(whole)
