"""Writes .ci/requirements.lock: every package of constraints.txt that a test run needs, with the checksum of its file.

    pip install --dry-run --ignore-installed --report report.json -c constraints.txt -e '.[dev,test]'
    python .ci/lock.py report.json

The files are those for Python 3.11 on Linux x86-64, where CI runs; `.ci/run` installs them with --require-hashes.
"""

import json
import sys
from pathlib import Path

LOCK = Path(__file__).with_name("requirements.lock")

ALSO = {"torch": ("60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",)}
"""Other files of the same version that will do: PyPI's torch, where the one for CPUs alone is not to be had."""


def lock(report: Path) -> str:
    """The lines of the lock file."""
    lines = []
    for package in json.loads(report.read_text())["install"]:
        checksums = package["download_info"].get("archive_info", {}).get("hashes")
        if checksums:  # this project itself has none
            name, version = (package["metadata"][field] for field in ("name", "version"))
            hashes = (checksums["sha256"], *ALSO.get(name, ()))
            allowed = " ".join(f"--hash=sha256:{value}" for value in hashes)
            lines.append(f"{name.lower()}=={version.partition('+')[0]} {allowed}")
    return "# Made by .ci/lock.py, which tells how.\n" + "\n".join(sorted(lines)) + "\n"


if __name__ == "__main__":
    LOCK.write_text(lock(Path(sys.argv[1])))
