"""What a federation's server keeps on disk, so that a kill at any moment costs one round at most.

``rounds/round_00007/`` exists only complete: it is written under another name and renamed. It holds
the strategy's state and the best deployed weights so far.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch

from medseg_kit.files import replacing, sync, write_json
from medseg_kit.fl.files import load_torch, save_torch
from medseg_kit.fl.ledger import Ledger
from medseg_kit.typing import UserError

IDENTITY_FILE = "federation.json"


class ServerStore:
    """The server's folder.

    Args:
        folder: Output folder of the federation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rounds = folder / "rounds"
        self.ledger = Ledger(folder / "ledger.jsonl")

    def open(self, identity: dict[str, Any], *, resume: bool) -> tuple[str, int]:
        """Return the run's id and its last complete round, 0 for a new federation.

        A federation that has completed no round holds nothing to lose and is begun anew.

        Args:
            identity: What must be unchanged for the federation in the folder to be continued.
            resume: Continue it; otherwise start anew.

        Raises:
            UserError: If the folder holds another federation.
        """
        path = self.folder / IDENTITY_FILE
        if resume and path.is_file() and self.completed():
            known = json.loads(path.read_text(encoding="utf-8"))
            for name, value in identity.items():
                if known.get(name) != value:
                    raise UserError(
                        f"{self.folder} holds a federation with {name} {known.get(name)!r}, not "
                        f"{value!r}; give another --out, or --resume=False to start anew"
                    )
            self.ledger.forget_after(self.completed())
            return str(known["run_id"]), self.completed()
        self._clear()
        run_id = uuid.uuid4().hex[:12]
        write_json(path, {**identity, "run_id": run_id})
        return run_id, 0

    def completed(self) -> int:
        """Return the last complete round, 0 if there is none."""
        numbers = [int(path.name.split("_")[1]) for path in self.rounds.glob("round_*")]
        return max(numbers, default=0)

    def save_round(
        self, round_number: int, server: dict[str, Any], best: dict[str, torch.Tensor] | None
    ) -> None:
        """Write a complete round and drop the one before.

        Args:
            round_number: Counts from 1.
            server: Tensors and plain values that the next round starts from.
            best: New best deployed weights, or None to keep those of the round before.
        """
        target = self._round(round_number)
        temporary = self.rounds / f".writing_{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_torch(temporary / "server.pt", server)
        previous = self._round(round_number - 1) / "best.pt"
        if best is not None:
            save_torch(temporary / "best.pt", best)
        elif previous.is_file():
            os.link(previous, temporary / "best.pt")
        sync(temporary)
        temporary.replace(target)
        sync(self.rounds)
        for path in self.rounds.glob("round_*"):
            if path != target:
                shutil.rmtree(path)

    def load_round(self, round_number: int) -> dict[str, Any]:
        """Return what `save_round` was given as ``server``."""
        state: dict[str, Any] = load_torch(self._round(round_number) / "server.pt")
        return state

    def load_best(self, round_number: int) -> dict[str, torch.Tensor]:
        """Return the best deployed weights up to a complete round."""
        state: dict[str, torch.Tensor] = load_torch(self._round(round_number) / "best.pt")
        return state

    def deploy(self, state: dict[str, torch.Tensor], summary: dict[str, Any]) -> Path:
        """Write ``global/model.pt``, then ``summary.json``; return the path of the weights."""
        path = self.folder / "global" / "model.pt"
        save_torch(path, state)
        write_json(self.folder / "summary.json", summary)
        return path

    def _round(self, round_number: int) -> Path:
        return self.rounds / f"round_{round_number:05d}"

    def _clear(self) -> None:
        """Remove what an earlier federation left; nothing else in the folder is touched."""
        for name in (IDENTITY_FILE, "summary.json", "ledger.jsonl"):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("rounds", "global"):
            if (self.folder / name).is_dir():
                shutil.rmtree(self.folder / name)
        with replacing(self.folder / ".writable"):
            pass  # fails early, with the folder's name, where nothing can be written
        (self.folder / ".writable").unlink()
