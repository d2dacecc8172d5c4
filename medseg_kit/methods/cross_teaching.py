"""Cross teaching: two students label the unlabelled images for each other.

Luo et al., "Semi-supervised medical image segmentation via cross teaching between CNN and
transformer", MIDL 2022 (https://arxiv.org/abs/2112.04894).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys

from medseg_kit.engines.semi_supervised import (
    SemiSupervisedStep,
    count_labelled,
    make_branches,
)
from medseg_kit.engines.step import Losses
from medseg_kit.engines.teacher import Teacher
from medseg_kit.losses.soft_dice import cross_entropy, soft_dice

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

TEACHING_LOSSES = ("dice", "cross_entropy")


class CrossTeachingStep(SemiSupervisedStep):
    """Supervised loss of both students, and each against the other's hard labels.

    Needs a `DualNetwork`. Leaves both branches in ``batch["branches"]`` for contrast terms.

    Args:
        teaching_loss: "dice" (cross teaching) or "cross_entropy" (CPS).
        ema_decay: If given, the classes come from a moving average of both students, of this decay,
            instead of from the students themselves (ours; the papers have no teacher here).
        **options: Those of `SemiSupervisedStep`.

    Raises:
        ValueError: For another ``teaching_loss``.
    """

    def __init__(
        self, *, teaching_loss: str = "dice", ema_decay: float | None = None, **options: Any
    ) -> None:
        teacher = None if ema_decay is None else Teacher(ema_decay)
        super().__init__(teacher=teacher, **options)
        if teaching_loss not in TEACHING_LOSSES:
            raise ValueError(
                f"teaching_loss must be one of {TEACHING_LOSSES}, got {teaching_loss!r}"
            )
        self.teaching_loss = teaching_loss

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the first student's logits ``(B, C, H, W)`` and the losses of both."""
        image, count = batch[CommonKeys.IMAGE], count_labelled(batch)
        output = engine.network(image)
        answer = None
        if self.teacher is not None and count < len(image):
            answer = self.ask_teacher(engine, image[count:])
        branches = make_branches(batch, output, answer)
        losses: Losses = {}
        for name, branch in zip(("first", "second"), branches, strict=True):
            for key, value in self.supervised(branch.logits, batch).items():
                losses[f"{key}_{name}"] = value
            if count < len(branch.logits):
                loss = self.taught(branch.logits[count:].float(), branch.target[count:])
                losses[f"teaching_{name}"] = self.consistency_weight * loss
        first = branches[0].logits
        return first, losses or self.absent(first)

    def taught(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of unlabelled images against the other student's classes."""
        if self.teaching_loss == "dice":
            return soft_dice(logits.softmax(1), target)
        return cross_entropy(logits, target)
