"""What a site remembers from round to round, stated explicitly and kept at the site.

Optimiser, training step (step counter, teacher, banks), random state and the keys that never leave
the site. ``keep`` continues with all of it; ``reset`` starts each round with a fresh optimiser and
step, only the time (epochs and steps since round 1) goes on.
"""

from __future__ import annotations

import copy
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medseg_kit.fl.files import load_torch, save_torch
from medseg_kit.typing import UserError

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

    from medseg_kit.typing import StateDict

CLIENT_STATES = ("keep", "reset")
PAUSE_S = 30 * 86_400  # how long the state of a federation that does not go on is kept


class SiteMemory:
    """The state of one site between rounds, in memory and in files of the site.

    Args:
        trainer: The site's trainer.
        step: Its training step, or None for a trainer without one.
        folder: Folder of the site's own files.
        policy: "keep" or "reset".
        private: The keys that never leave the site, as they are before round 1.

    Raises:
        UserError: For another policy.
    """

    def __init__(
        self,
        trainer: SupervisedTrainer,
        step: Any | None,
        folder: Path,
        *,
        policy: str,
        private: StateDict,
    ) -> None:
        if policy not in CLIENT_STATES:
            raise UserError(
                f"client_state is {policy!r}; set it to one of {', '.join(CLIENT_STATES)} in "
                "federated.yaml (what a site does with its optimiser between rounds)"
            )
        self.trainer = trainer
        self.step = step
        self.folder = folder
        self.policy = policy
        self.private = private
        self._pristine = copy.deepcopy(self._capture())
        self._live: tuple[str, int] | None = None
        self._began_from: Path | None = None
        self._random = self._pristine["random"]

    def begin(self, run_id: str, round_number: int, num_rounds: int, local_epochs: int) -> None:
        """Bring trainer and step to the start of a round.

        Continues from the newest state of this federation before the round: the one in memory, or
        after a restart the one on disk, or none. Time is set from the round number, so that a site
        which missed rounds keeps pace with the schedules of the others.
        """
        self._began_from = self._newest(run_id, before=round_number)
        if self._live != (run_id, round_number - 1):
            found = self._began_from
            self._restore(self._pristine if found is None else load_torch(found))
        self._live = None  # undefined until the round is complete
        set_random_state(self._random)  # other sites of this process have drawn numbers since
        if self.policy == "reset":
            self._reset()
        steps = self.trainer.state.epoch_length
        self.trainer.state.epoch = (round_number - 1) * local_epochs
        self.trainer.state.iteration = self.trainer.state.epoch * steps
        if self.step is not None:
            self.step.total_steps = num_rounds * local_epochs * steps
            self.step.global_step = self.trainer.state.iteration

    def end(self, run_id: str, round_number: int) -> None:
        """Keep the state after a round, in memory and on disk.

        The state that the round began from stays as well: the server may stop before it has saved
        this round, and then asks for it again. Files of other federations, which may be paused,
        stay for 30 days.
        """
        state = self._capture()
        save_torch(self._path(run_id, round_number), state)
        self._random = state["random"]
        self._live = (run_id, round_number)
        keep = {self._began_from, self._path(run_id, round_number)}
        oldest = time.time() - PAUSE_S
        for path in self.folder.glob("round_*.pt"):
            own = path.name.endswith(f"_{run_id}.pt")
            if path not in keep and (own or path.stat().st_mtime < oldest):
                path.unlink()

    def _path(self, run_id: str, round_number: int) -> Path:
        return self.folder / f"round_{round_number:05d}_{run_id}.pt"

    def _newest(self, run_id: str, *, before: int) -> Path | None:
        paths = {
            int(path.name.split("_")[1]): path for path in self.folder.glob(f"round_*_{run_id}.pt")
        }
        earlier = [number for number in paths if number < before]
        return paths[max(earlier)] if earlier else None

    def _capture(self) -> dict[str, Any]:
        return {
            "optimizer": self.trainer.optimizer.state_dict(),
            "step": None if self.step is None else self.step.state_dict(),
            "random": random_state(),
            "private": self.private,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        state = copy.deepcopy(state)  # the optimiser takes the tensors over and changes them
        self.trainer.optimizer.load_state_dict(state["optimizer"])
        if self.step is not None:
            self.step.load_state_dict(state["step"])
        self._random = state["random"]
        self.private = state["private"]

    def _reset(self) -> None:
        pristine = copy.deepcopy(self._pristine)
        self.trainer.optimizer.load_state_dict(pristine["optimizer"])
        if self.step is not None:
            self.step.load_state_dict(pristine["step"])


def random_state() -> dict[str, Any]:
    """Return the state of torch (CPU and all GPUs), NumPy and random, as plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - global state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": [str(name), [int(key) for key in keys], position, has_gauss, cached],
        "random": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["random"]
    random.setstate((version, tuple(internal), gauss))
