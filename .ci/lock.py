"""Writes .ci/requirements.lock: every package of constraints.txt that a test run needs, with the checksum of its file.

    pip install --dry-run --ignore-installed --report report.json -c constraints.txt -e '.[dev,test]'
    python .ci/lock.py report.json

The files are those for Python 3.11 on Linux x86-64, where CI runs; `.ci/run` installs them with --require-hashes.
"""

import json
import sys
from pathlib import Path

LOCK = Path(__file__).with_name("requirements.lock")


def lock(report: Path) -> str:
    """The lines of the lock file."""
    lines = []
    for package in json.loads(report.read_text())["install"]:
        checksums = package["download_info"].get("archive_info", {}).get("hashes")
        if checksums:  # this project itself has none
            name, version = (package["metadata"][field] for field in ("name", "version"))
            lines.append(f"{name.lower()}=={version} --hash=sha256:{checksums['sha256']}")
    return "# Made by .ci/lock.py, which tells how.\n" + "\n".join(sorted(lines)) + "\n"


if __name__ == "__main__":
    LOCK.write_text(lock(Path(sys.argv[1])))
