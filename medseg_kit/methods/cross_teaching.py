"""Cross teaching: two students label the unlabelled images for each other.

Luo et al., "Semi-supervised medical image segmentation via cross teaching between CNN and
transformer", MIDL 2022 (https://arxiv.org/abs/2112.04894).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys

from medseg_kit.engines.semi_supervised import (
    Branch,
    SemiSupervisedStep,
    count_labelled,
    targets,
)
from medseg_kit.engines.step import Losses
from medseg_kit.losses.soft_dice import cross_entropy, soft_dice

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

TEACHING_LOSSES = ("dice", "cross_entropy")


class CrossTeachingStep(SemiSupervisedStep):
    """Supervised loss of both students, and each against the other's hard labels.

    Needs a `DualNetwork`. Leaves both branches in ``batch["branches"]`` for contrast terms.

    Args:
        teaching_loss: "dice" (cross teaching) or "cross_entropy" (CPS, register entry A39).
        **options: Those of `SemiSupervisedStep`.

    Raises:
        ValueError: For another ``teaching_loss``.
    """

    def __init__(self, *, teaching_loss: str = "dice", **options: Any) -> None:
        super().__init__(**options)
        if teaching_loss not in TEACHING_LOSSES:
            raise ValueError(
                f"teaching_loss must be one of {TEACHING_LOSSES}, got {teaching_loss!r}"
            )
        self.teaching_loss = teaching_loss

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the first student's logits ``(B, C, H, W)`` and the losses of both."""
        branches = make_branches(batch, engine.network(batch[CommonKeys.IMAGE]))
        batch["branches"] = branches
        count = count_labelled(batch)
        losses: Losses = {}
        for name, branch in zip(("first", "second"), branches, strict=True):
            for key, value in self.supervised(branch.logits, batch).items():
                losses[f"{key}_{name}"] = value
            if count < len(branch.logits):
                taught = self.taught(branch.logits[count:].float(), branch.target[count:])
                losses[f"teaching_{name}"] = self.consistency_weight * taught
        first = branches[0].logits
        return first, losses or self.absent(first)

    def taught(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of unlabelled images against the other student's classes."""
        if self.teaching_loss == "dice":
            return soft_dice(logits.softmax(1), target)
        return cross_entropy(logits, target)


def make_branches(batch: dict[str, Any], output: dict[str, Any]) -> tuple[Branch, Branch]:
    """Return both students' branches from what a `DualNetwork` returns in training mode."""
    logits = output["logits"]
    branches = []
    for own, other in ((0, 1), (1, 0)):
        target, teaching = targets(batch, logits[own], logits[other])
        projected = {scale: pair[own] for scale, pair in output.get("projected", {}).items()}
        taps = dict(output["taps"][own])
        branches.append(Branch(logits[own], target, teaching, taps, projected))
    return branches[0], branches[1]
