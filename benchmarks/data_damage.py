"""Damaged input on purpose: every row of it must be accounted for, nothing may crash or hang.

    python -m benchmarks.data_damage --json --molecules ../shared/data/smiles/all.smi

Mutates valid SMILES (characters deleted, doubled, swapped, replaced by any character), and CSV, TSV and JSONL files of
them (bytes flipped, rows cut, foreign encodings, NUL bytes, quotes, a line of 50 MB); flips bytes of tables as other
programs write them (semicolons, quoted tabs, UTF-16, cp1252, a Mac's ends of lines, packed); and runs `prepare` on all.
Molecules are featurised in worker processes: one that crashes is counted, not fatal.
"""

import argparse
import gzip
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from data_pipeline.jobs import Runner, Settings, prepare
from data_pipeline.logs import quiet_libraries
from data_pipeline.tasks import Columns

_ALPHABET = "CNOPSFIclnos[]()=#@+-/\\%123456789.:*>~$\0 \tBrHé"


def mutated(smiles: str, rng: random.Random) -> str:
    """The SMILES after one to four random edits."""
    text = list(smiles)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text) + 1)
        kind = rng.randrange(5)
        if kind == 0 and text:
            del text[min(place, len(text) - 1)]
        elif kind == 1:
            text.insert(place, rng.choice(_ALPHABET))
        elif kind == 2 and text:
            text[min(place, len(text) - 1)] = rng.choice(_ALPHABET)
        elif kind == 3:
            text[place:place] = text[place : place + rng.randint(1, 8)]
        else:
            other = rng.randrange(len(text) + 1)
            text[place:place], text[other:other] = text[other : other + 2], text[place : place + 2]
    return "".join(text)


def damaged_lines(lines: list[bytes], rng: random.Random) -> list[bytes]:
    """The lines of a file, each damaged in one way; the first, a header, is left alone."""
    result = lines[:1]
    for line in lines[1:]:
        place = rng.randrange(len(line) + 1)
        kind = rng.randrange(8)
        if kind == 0:
            line = line[:place] + bytes([rng.randrange(256)]) + line[place + 1 :]
        elif kind == 1:
            line = line[:place]
        elif kind == 2:
            line = line[:place] + b"\0" + line[place:]
        elif kind == 3:
            line = line[:place] + b'"' + line[place:]
        elif kind == 4:
            line = line.decode(errors="replace").encode("utf-16")
        elif kind == 5:
            line = line[:place] + "é".encode("latin-1") + line[place:]
        elif kind == 6:
            line = line + line
        result.append(line)
    return result


def flipped(content: bytes, rng: random.Random, share: float = 1e-4) -> bytes:
    """The content with some of its bytes replaced by any others."""
    found = bytearray(content)
    for _ in range(int(len(found) * share)):
        found[rng.randrange(len(found) // 10, len(found))] = rng.randrange(256)  # the header is left alone
    return bytes(found)


def other_tables(molecules: list[str], count: int, rng: random.Random) -> dict[str, bytes]:
    """Tables as other programs write them, with flipped bytes."""
    rows = [(rng.choice(molecules), f"A molecule, naïve; at {i},5 °C.", str(i)) for i in range(count)]

    def joined(delimiter: str, quote: str, end: str) -> str:
        lines = [["smiles", "text", "number"], *([s, f"{quote}{t}{quote}", n] for s, t, n in rows)]
        return end.join(map(delimiter.join, lines)) + end

    return {
        "semicolons.csv": flipped(joined(";", '"', "\r\n").encode("cp1252"), rng),
        "quoted.tsv": flipped(joined("\t", '"', "\n").encode(), rng),
        "spreadsheet.txt": flipped(joined("\t", '"', "\r\n").encode("utf-16"), rng),
        "mac.csv": flipped(joined(",", '"', "\r").encode(), rng),
        "packed.csv.gz": gzip.compress(flipped(joined(",", '"', "\n").encode(), rng)),
        "molecules.smi": flipped("".join(f"{s} molecule {n}\n" for s, _, n in rows).encode(), rng),
    }


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.data_damage", description=__doc__)
    parser.add_argument("--molecules", type=Path, default=Path("../shared/data/smiles/all.smi"))
    parser.add_argument("--smiles", type=int, default=60_000, help="mutated SMILES")
    parser.add_argument("--lines", type=int, default=40_000, help="damaged lines, in files of three formats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    quiet_libraries()
    rng = random.Random(options.seed)
    molecules = [line.split("\t")[0] for line in options.molecules.read_text().splitlines()]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [json.dumps({"smiles": mutated(rng.choice(molecules), rng), "text": "x"}) for _ in range(options.smiles)]
        files = {"smiles.jsonl": "".join(row + "\n" for row in rows).encode()}
        count = options.lines // 3
        tables = {
            "csv": [b"smiles,text", *(f'{rng.choice(molecules)},"A molecule, {i}."'.encode() for i in range(count))],
            "tsv": [b"smiles\ttext", *(f"{rng.choice(molecules)}\tA molecule {i}.".encode() for i in range(count))],
            "jsonl": [json.dumps({"smiles": rng.choice(molecules), "text": str(i)}).encode() for i in range(count + 1)],
        }
        for suffix, lines in tables.items():
            damaged = damaged_lines(lines, rng)
            damaged.insert(len(damaged) // 2, b"C" * 50 * 2**20)
            files[f"damaged.{suffix}"] = b"\n".join(damaged) + b"\n"
        files |= other_tables(molecules, count // 4, rng)
        totals: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for name, content in files.items():
            (folder / name).write_bytes(content)
            runner = Runner(num_workers=options.num_workers)
            columns = Columns(text="name") if name.endswith(".smi") else Columns()
            settings = Settings(task="description", columns=columns, time_limit=10.0)
            manifest = prepare({None: [folder / name]}, folder / f"{name}.out", settings, runner)
            rejected = sum(manifest["rejected"].values())
            records = sum(manifest["splits"].values())
            kept = len((folder / f"{name}.out" / "rejected.jsonl").read_text().splitlines())
            if manifest["rows"] != records + rejected or kept != rejected:
                raise SystemExit(
                    f"{name}: {manifest['rows']} rows, {records} records, {rejected} rejected, {kept} kept"
                )
            totals.update(rows=manifest["rows"], records=records, rejected=rejected)
            reasons.update(manifest["rejected"])
            print(f"{name}: {manifest['rows']:,} rows = {records:,} records + {rejected:,} rejected", flush=True)
    result = {**totals, "reasons": dict(reasons.most_common()), "seconds": round(time.perf_counter() - start)}
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
