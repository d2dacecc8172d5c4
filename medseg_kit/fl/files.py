"""The files of a federation: tensors that load without running code, and lines of records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medseg_kit.files import replacing


def save_torch(path: Path, content: Any) -> None:
    """Write tensors and plain values so that `load_torch` reads them."""
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load_torch(path: Path) -> Any:
    """Read a file of tensors and plain values; runs no code from it."""
    return torch.load(path, map_location="cpu", weights_only=True)


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the unwanted records, and a half-written last line, from a JSON-lines file."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the process was killed while it wrote this line
        if wanted(record):
            kept.append(line)
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
