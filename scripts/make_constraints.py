"""Writes constraints.txt from pip's resolution reports, one report per Python version.

For each supported Python, in a fresh environment with a current pip::

    python -m pip install --dry-run --report 3.10.json torch==2.13.0 -e '.[federated]' \
        --group dev --group hooks

then ``python scripts/make_constraints.py 3.10.json 3.11.json 3.12.json``. Packages that only
torch's CUDA build pulls in are left to torch; versions that differ between Pythons get markers.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / "constraints.txt"
LEFT_TO_TORCH = re.compile(r"nvidia-|cuda-|triton")
HEADER = """\
# Exact versions for Python 3.10 to 3.12, written by scripts/make_constraints.py; do not edit.
# Install torch first (pip install torch==2.13.0): a build that is already there is then kept.
"""


def read_report(path: Path) -> tuple[str, dict[str, str]]:
    """Return a report's Python version (``3.10``) and its versions by normalised name."""
    report = json.loads(path.read_text(encoding="utf-8"))
    python = ".".join(report["environment"]["python_version"].split(".")[:2])
    found = {}
    for item in report["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        if not LEFT_TO_TORCH.match(name) and "dir_info" not in item.get("download_info", {}):
            found[name] = item["metadata"]["version"].partition("+")[0]
    return python, found


def pins(name: str, versions: dict[str, str], pythons: list[str]) -> list[str]:
    """Return the lines of one package: a single pin where all Pythons agree, else markers."""
    if len(set(versions.values())) == 1:
        return [f"{name}=={next(iter(versions.values()))}"]
    lines = []
    for version in dict.fromkeys(versions[python] for python in pythons if python in versions):
        users = [python for python in pythons if versions.get(python) == version]
        first, last = pythons.index(users[0]), pythons.index(users[-1])
        parts = []
        if first > 0:
            parts.append(f"python_version >= '{pythons[first]}'")
        if last < len(pythons) - 1:
            parts.append(f"python_version < '{pythons[last + 1]}'")
        lines.append(f"{name}=={version} ; {' and '.join(parts)}")
    return lines


def main(paths: list[str]) -> None:
    reports = dict(sorted(map(read_report, map(Path, paths))))
    pythons = sorted(reports, key=lambda text: int(text.partition(".")[2]))
    lines = []
    for name in sorted(set().union(*reports.values())):
        versions = {python: found[name] for python, found in reports.items() if name in found}
        lines += pins(name, versions, pythons)
    TARGET.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{TARGET.name}: {len(lines)} pins for Python {', '.join(pythons)}")


if __name__ == "__main__":
    main(sys.argv[1:])
