"""What all semi-supervised methods share: the labelled part of a batch, ramps and branches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from monai.utils.enums import CommonKeys
from torch import nn

from medseg_kit.engines.schedules import Schedule, ssl4mis_ramp
from medseg_kit.engines.step import TrainStep
from medseg_kit.losses.soft_dice import DiceCrossEntropy


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
        projected: Projected features of unit length by scale name, where there are projectors.
    """

    logits: torch.Tensor
    target: torch.Tensor
    teaching: torch.Tensor
    taps: dict[str, torch.Tensor] = field(default_factory=dict)
    projected: dict[str, torch.Tensor] = field(default_factory=dict)


class SemiSupervisedStep(TrainStep):
    """Base of the methods that learn from labelled and unlabelled slices.

    A batch holds its labelled images first. Where a batch has none of a kind, the terms that need
    it are absent. Methods with branches leave them in ``batch["branches"]`` for the terms.

    Args:
        supervised_loss: ``(logits, label) -> loss`` of the labelled images; half of cross-entropy
            plus Dice if None (the SSL4MIS code; the papers of MCSCv2 and CCT-R print their sum,
            register entry A5).
        consistency: Weight of the unsupervised loss when the ramp has reached 1.
        ramp: Ramp of that weight: SSL4MIS's if None (A6), `gaussian_ramp` in the papers.
        consistency_start: Steps without any unsupervised loss.
        **options: Those of `TrainStep`.
    """

    def __init__(
        self,
        *,
        supervised_loss: nn.Module | None = None,
        consistency: float = 0.1,
        ramp: Schedule | None = None,
        consistency_start: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.supervised_loss = DiceCrossEntropy() if supervised_loss is None else supervised_loss
        self.consistency = consistency
        self.ramp = ssl4mis_ramp() if ramp is None else ramp
        self.consistency_start = consistency_start

    @property
    def consistency_weight(self) -> float:
        """Weight of the unsupervised loss at the current step."""
        if self.global_step < self.consistency_start:
            return 0.0
        return self.consistency * self.ramp(self.global_step, self.total_steps)

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

    def absent(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a zero that keeps the graph, for a batch without any term."""
        return {"nothing": logits.float().sum() * 0.0}


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
