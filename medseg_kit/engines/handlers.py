"""Ignite handlers: seeds by epoch, mean losses, validation where there are cases, resumption."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from monai.engines import Evaluator
from monai.handlers import CheckpointSaver, ValidationHandler
from monai.transforms import Compose

from medseg_kit.files import replacing
from medseg_kit.typing import PathLike

logger = logging.getLogger(__name__)

BEST = ("best_metric", "best_metric_epoch", "best_saved")  # in a trainer's state


class EpochSeed:
    """Seed every source of randomness at the start of each epoch from (seed, site, epoch).

    Training then depends on the epoch alone, not on what ran before: a resumed run, a site of a
    federation and local training draw the same numbers. The epoch is the engine's own counter,
    which continues over the rounds of a federation.

    Args:
        seed: Seed of the run.
        site: Name of the site.
    """

    def __init__(self, seed: int, site: str) -> None:
        self.seed = seed
        self.site = site

    def attach(self, engine: Engine) -> None:
        """Seed at every ``EPOCH_STARTED`` of ``engine``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed torch, NumPy, random and the transforms of the engine's data set."""
        seed = epoch_seed(self.seed, self.site, engine.state.epoch)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - third-party transforms draw from the global state
        random.seed(seed)
        loader = engine.state.dataloader
        transform = getattr(getattr(loader, "dataset", None), "transform", None)
        if isinstance(transform, Compose):
            transform.set_random_state(seed)


def epoch_seed(seed: int, site: str, epoch: int) -> int:
    """Return 32 bits that depend on all three arguments.

    >>> epoch_seed(0, "a", 1) == epoch_seed(0, "a", 2)
    False
    """
    digest = hashlib.sha256(f"{seed}/{site}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


class MeanLosses:
    """Put an epoch's mean losses into the trainer's metrics, where MONAI's handlers log them.

    `StatsHandler` prints them after each epoch, and `TensorBoardStatsHandler` or `MLFlowHandler`,
    where a user adds them, draw them: ``train_loss``, the sum that is minimised, and, where it has
    several parts, ``train_loss_<part>`` with its weight. A part is averaged over the steps that had
    it. They are those of this process; of several GPUs each has its own batches.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def attach(self, engine: Engine) -> None:
        """Gather at every iteration of ``engine``, and write at the end of every epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.gather)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def begin(self) -> None:
        """Forget the last epoch."""
        self._sums, self._counts = {}, {}

    def gather(self, engine: Engine) -> None:
        """Add a step's losses; they stay on their device."""
        output: Any = engine.state.output
        parts = {f"train_loss_{name}": value for name, value in output["losses"].items()}
        for name, value in {"train_loss": output["loss"], **parts}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.float()
            self._counts[name] = self._counts.get(name, 0) + 1

    def write(self, engine: Engine) -> None:
        """Write the means; a part that this epoch did not have is gone."""
        others = {k: v for k, v in engine.state.metrics.items() if not k.startswith("train_loss")}
        names = list(self._sums) if len(self._sums) > 2 else ["train_loss"]  # one part is the sum
        means = {name: float(self._sums[name]) / self._counts[name] for name in names}
        engine.state.metrics = {**others, **means}


class Validation:
    """Validate at intervals and after the last epoch; without cases, keep the last weights instead.

    A published split may have no validation set (BTCV as "Synapse"): its papers report the last
    weights. With cases, the evaluator's own handlers keep the best, also over a resumption: the
    best score stands in the trainer's state, which `Resume` keeps.

    Args:
        validator: The evaluator.
        interval: Epochs between validations.
        last: Network whose weights are written after the last epoch if there are no cases.
        path: File for them.
    """

    def __init__(
        self, validator: Evaluator, *, interval: int, last: torch.nn.Module, path: PathLike
    ) -> None:
        self.validator = validator
        self.interval = interval
        self.last = last
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Choose by whether the evaluator has data."""
        # the evaluator's state has no loader before its first run
        if len(cast("Sized", self.validator.data_loader)):
            engine.add_event_handler(Events.EPOCH_STARTED, self.recall_best)
            validate = ValidationHandler(self.interval, self.validator)
            engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self.is_due), validate)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.note_best)
            return
        logger.warning("no validation cases: the last weights are kept in %s", self.path)
        engine.add_event_handler(Events.COMPLETED, self.keep_last)

    def is_due(self, engine: Engine, epoch: int) -> bool:
        """Whether to validate after an epoch; after the last one always, so weights are kept."""
        return epoch % self.interval == 0 or epoch == engine.state.max_epochs

    def note_best(self, engine: Engine) -> None:
        """Take the evaluator's best score, and which files hold it, over into the trainer."""
        best: Any = self.validator.state
        if best.best_metric_epoch < 1:
            return
        saved = [checkpoint.state_dict()["_saved"] for checkpoint in self._checkpoints()]
        values = (float(best.best_metric), int(best.best_metric_epoch), saved)
        for name, value in zip(BEST, values, strict=True):
            setattr(engine.state, name, value)

    def recall_best(self, engine: Engine) -> None:
        """Tell an evaluator that is new after a resumption which score its weights have to beat."""
        score, epoch, saved = (getattr(engine.state, name, None) for name in BEST)
        if not saved or not self.path.is_file():
            return
        state: Any = self.validator.state
        if epoch > state.best_metric_epoch:
            state.best_metric, state.best_metric_epoch = score, epoch
            checkpoints = self._checkpoints()  # of several processes only the first keeps weights
            for checkpoint, items in zip(checkpoints, saved[: len(checkpoints)], strict=True):
                checkpoint.load_state_dict({"_saved": items})

    def _checkpoints(self) -> list[Checkpoint]:
        """Return what keeps the evaluator's best weights; MONAI and ignite list it nowhere else."""
        handlers = [item[0] for items in self.validator._event_handlers.values() for item in items]
        owners = {id(o): o for handler in handlers if (o := getattr(handler, "__self__", None))}
        savers = [owner for owner in owners.values() if isinstance(owner, CheckpointSaver)]
        found = [saver._key_metric_checkpoint for saver in savers]
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def keep_last(self, engine: Engine) -> None:
        """Write the weights."""
        del engine
        with replacing(self.path) as file:
            torch.save(self.last.state_dict(), file)


class Resume:
    """Save everything a run depends on after each epoch, and continue from it.

    The file holds one state per object (network, optimiser, training step, ...), the engine's epoch
    and iteration, and the best validation score so far; it is replaced atomically and loads with
    ``weights_only=True``.

    Args:
        path: The checkpoint file.
        objects: What is saved, by name; each has ``state_dict`` and ``load_state_dict``.
        resume: Continue from the file if it is there; otherwise it is kept beside as ``.earlier``.
        save: Write the file; a federation keeps its own client state instead.
    """

    def __init__(
        self, path: PathLike, objects: Mapping[str, Any], *, resume: bool = False, save: bool = True
    ) -> None:
        self.path = Path(path)
        self.objects = dict(objects)
        self.resume = resume
        self.save = save

    def attach(self, engine: Engine) -> None:
        """Load before the first epoch, save after each."""
        if self.resume:
            engine.add_event_handler(Events.STARTED, self.load)
        elif self.save:
            engine.add_event_handler(Events.STARTED, self.put_aside)
        if self.save:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def load(self, engine: Engine) -> None:
        """Restore all objects and the engine's counters; start anew if the file is missing."""
        if not self.path.is_file():
            logger.info("%s does not exist: training starts from the beginning", self.path)
            return
        states = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, target in self.objects.items():
            target.load_state_dict(states[name])
        engine.state.epoch = states["epoch"]
        engine.state.iteration = states["iteration"]
        for name in states.keys() & set(BEST):
            setattr(engine.state, name, states[name])
        logger.info("continue after epoch %d of %s", states["epoch"], self.path)

    def put_aside(self) -> None:
        """Keep the file of an earlier training that this one does not continue."""
        if not self.path.is_file():
            return
        earlier = self.path.with_name(f"{self.path.stem}.earlier{self.path.suffix}")
        self.path.replace(earlier)
        logger.warning(
            "%s was there: this training starts anew (`--resume True` would continue it), and the"
            " file is kept as %s",
            self.path,
            earlier.name,
        )

    def write(self, engine: Engine) -> None:
        """Replace the file by one with all states."""
        states: dict[str, Any] = {name: item.state_dict() for name, item in self.objects.items()}
        states["epoch"] = engine.state.epoch
        states["iteration"] = engine.state.iteration
        states |= {
            name: getattr(engine.state, name) for name in BEST if hasattr(engine.state, name)
        }
        with replacing(self.path) as file:
            torch.save(states, file)
