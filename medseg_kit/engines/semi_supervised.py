"""What all semi-supervised methods share: the labelled part of a batch, ramps and branches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys
from torch import nn

from medseg_kit.engines.schedules import Schedule, ssl4mis_ramp
from medseg_kit.engines.step import TrainStep, check_resumed
from medseg_kit.engines.teacher import Teacher
from medseg_kit.losses.soft_dice import DiceCrossEntropy
from medseg_kit.networks.projectors import Projected
from medseg_kit.typing import UserError

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Branch:
    """What one network says about a batch, for the loss terms that compare branches.

    Attributes:
        logits: ``(B, C, H, W)``.
        target: ``(B, H, W)`` long: ground truth of labelled images; of unlabelled ones the class
            that the other branch (or the teacher) predicts.
        teaching: ``(B, C, H, W)`` probabilities that supplied ``target``, without gradient: of
            labelled images the branch's own, of unlabelled ones the other branch's.
        taps: Features by scale name, where the network gives them.
        projected: Taps to be projected, by scale name, where there are projectors.
    """

    logits: torch.Tensor
    target: torch.Tensor
    teaching: torch.Tensor
    taps: dict[str, torch.Tensor] = field(default_factory=dict)
    projected: dict[str, Projected] = field(default_factory=dict)


class SemiSupervisedStep(TrainStep):
    """Base of the methods that learn from labelled and unlabelled slices.

    A batch holds its labelled images first. Where a batch has none of a kind, the terms that need
    it are absent. Methods with branches leave them in ``batch["branches"]`` for the terms.

    Args:
        supervised_loss: ``(logits, label) -> loss`` of the labelled images; half of cross-entropy
            plus Dice if None (the SSL4MIS code; the papers of MCSCv2 and CCT-R print their sum).
        consistency: Weight of the unsupervised loss when the ramp has reached 1.
        ramp: Ramp of that weight: SSL4MIS's if None, `gaussian_ramp` in the papers.
        consistency_start: Steps without any unsupervised loss.
        teacher: Moving average that follows the weights after each step, for the methods that have
            one; its state is part of the step's.
        **options: Those of `TrainStep`.

    Attributes:
        learns_from_unlabelled: Whether the method has an unsupervised loss at all.
    """

    learns_from_unlabelled = True

    def __init__(
        self,
        *,
        supervised_loss: nn.Module | None = None,
        consistency: float = 0.1,
        ramp: Schedule | None = None,
        consistency_start: int = 0,
        teacher: Teacher | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.supervised_loss = DiceCrossEntropy() if supervised_loss is None else supervised_loss
        self.consistency = consistency
        self.ramp = ssl4mis_ramp() if ramp is None else ramp
        self.consistency_start = consistency_start
        self.teacher = teacher
        self._looked = False

    @property
    def consistency_weight(self) -> float:
        """Weight of the unsupervised loss at the current step."""
        return self.consistency * self._ramped()

    def __call__(self, engine: SupervisedTrainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        """Run one step; see `TrainStep`. Warns once where an unsupervised loss has no images."""
        if self.learns_from_unlabelled and not self._looked and bool(batchdata["labelled"].all()):
            logger.warning(
                "the first batch of %d slices has no unlabelled one, so this method trains by its"
                " supervised loss alone; if the data have some, give a labelled_batch_size below"
                " batch_size",
                len(batchdata["labelled"]),
            )
        self._looked = True
        return super().__call__(engine, batchdata)

    def step_size(self, batch: dict[str, Any]) -> float:
        """Return the ramp where nothing in the batch is labelled, else 1.

        An adaptive optimiser divides a gradient by its size, so without a supervised loss beside it
        the small weight of an unsupervised loss would do nothing: a site of a federation that has
        no labels would, from the first round on, make full steps towards the pseudo-labels of a
        network that knows nothing yet.
        """
        return 1.0 if count_labelled(batch) else self._ramped()

    def _ramped(self) -> float:
        if self.global_step < self.consistency_start:
            return 0.0
        return self.ramp(self.global_step, self.total_steps)

    def supervised(self, logits: torch.Tensor, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the supervised loss of the labelled images; nothing where there are none.

        Args:
            logits: ``(B, C, H, W)`` of the whole batch, or of its labelled images.
            batch: The batch.
        """
        num_labelled = count_labelled(batch)
        if num_labelled == 0:
            return {}
        label = batch[CommonKeys.LABEL][:num_labelled]
        return {"supervised": self.supervised_loss(logits[:num_labelled].float(), label)}

    @torch.no_grad()
    def ask_teacher(self, engine: SupervisedTrainer, image: torch.Tensor) -> Any:
        """Return what the teacher's network says about images, without gradient.

        Raises:
            ValueError: If the method has no teacher.
        """
        if self.teacher is None:
            raise ValueError(f"{type(self).__name__} has no teacher")
        return self.teacher.of(engine.network)(image)

    def after_step(self, engine: SupervisedTrainer) -> None:
        """Move the teacher; ``global_step`` already counts the step that was done."""
        if self.teacher is not None:
            self.teacher.follow(engine.network, self.global_step - 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state and the teacher's."""
        teacher = {} if self.teacher is None else {"teacher": self.teacher.state_dict()}
        return {**super().state_dict(), **teacher}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        check_resumed("teacher", "teacher" in state, self.teacher is not None)
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])

    def absent(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a zero that keeps the graph, for a batch without any term."""
        return {"nothing": logits[:0].float().sum()}


def count_labelled(batch: dict[str, Any]) -> int:
    """Return how many images of the batch are labelled; they come first.

    Raises:
        ValueError: If a labelled image follows an unlabelled one.
    """
    labelled = batch["labelled"]
    count = int(labelled.sum())
    if not bool(labelled[:count].all()):
        raise ValueError("labelled images must come first in a batch; use a TwoStreamLoader")
    return count


def main_logits(output: Any) -> torch.Tensor:
    """Return the logits ``(B, C, H, W)`` of a network with one student.

    Raises:
        UserError: If the network has several.
    """
    logits = output["logits"] if isinstance(output, dict) else output
    if not isinstance(logits, torch.Tensor):
        raise UserError(
            f"this method trains one network, and the configuration has {len(logits)}: is the"
            " overlay that of another bundle?"
        )
    return logits


def targets(
    batch: dict[str, Any], own: torch.Tensor, other: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the target and the teaching probabilities of a branch; see `Branch`.

    Args:
        batch: The batch.
        own: Logits of the branch, ``(B, C, H, W)``.
        other: Logits of the branch that teaches it.
    """
    labelled = batch["labelled"]
    with torch.no_grad():
        teaching = torch.where(labelled[:, None, None, None], own, other).float().softmax(1)
        truth = batch[CommonKeys.LABEL][:, 0].long()
        target = torch.where(labelled[:, None, None], truth, teaching.argmax(1))
    return target, teaching


def make_branches(batch: dict[str, Any], output: Any, taught: Any = None) -> tuple[Branch, ...]:
    """Return the branches of a network's output in training mode and leave them in the batch.

    Args:
        batch: The batch; gets ``branches``.
        output: Logits ``(B, C, H, W)``, or a dict with ``logits`` (one tensor, or one a student)
            and perhaps ``taps`` and ``projected``, as `DualNetwork` and `SingleNetwork` give it.
        taught: The same of a teacher for the unlabelled images alone. Two students teach each other
            through it; a single one learns from it. Without it two students teach each other, a
            single one itself.
    """
    own = _students(output)
    sources = own if taught is None else _students(taught)
    count = len(own[0][0]) - len(sources[0][0])
    branches = []
    for (logits, taps, projected), (source, _, _) in zip(own, reversed(sources), strict=True):
        other = torch.cat([logits[:count].detach(), source.detach()]) if count else source
        target, teaching = targets(batch, logits, other)
        branches.append(Branch(logits, target, teaching, taps, projected))
    batch["branches"] = tuple(branches)
    return tuple(branches)


def branches_of(batch: dict[str, Any]) -> Sequence[Branch]:
    """Return the branches that `make_branches` left in a batch, for a loss term.

    Raises:
        UserError: If the method leaves none.
    """
    if "branches" not in batch:
        raise UserError(
            "a loss term compares the branches of a method, and this one leaves none; such terms"
            " go under cross teaching, CPS, Mean Teacher and UAMT"
        )
    return batch["branches"]  # type: ignore[no-any-return]  # a batch holds anything


def _students(
    output: Any,
) -> list[tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, Projected]]]:
    """Return logits, taps and projected features of each student."""
    fields = output if isinstance(output, dict) else {"logits": output}
    logits, taps, projected = fields["logits"], fields.get("taps"), fields.get("projected", {})
    if isinstance(logits, torch.Tensor):
        return [(logits, dict(taps or {}), dict(projected))]
    return [
        (
            each,
            {} if taps is None else dict(taps[index]),
            {scale: features[index] for scale, features in projected.items()},
        )
        for index, each in enumerate(logits)
    ]
