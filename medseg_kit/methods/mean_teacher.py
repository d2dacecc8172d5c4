"""Mean Teacher: the student agrees with its moving average on noisy unlabelled images.

Tarvainen and Valpola, NeurIPS 2017 (https://arxiv.org/abs/1703.01780), as in SSL4MIS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys

from medseg_kit.engines.semi_supervised import (
    SemiSupervisedStep,
    count_labelled,
    main_logits,
    make_branches,
)
from medseg_kit.engines.step import Losses
from medseg_kit.engines.teacher import Teacher

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

NOISE_SD, NOISE_LIMIT = 0.1, 0.2


def noisy(image: torch.Tensor) -> torch.Tensor:
    """Return the image with Gaussian noise of SD 0.1, cut at 0.2."""
    return image + (NOISE_SD * torch.randn_like(image)).clamp(-NOISE_LIMIT, NOISE_LIMIT)


class MeanTeacherStep(SemiSupervisedStep):
    """Supervised loss, and the mean squared difference to the teacher's probabilities.

    For loss terms it leaves the student's branch, whose pseudo-labels are the teacher's. The
    teacher is state of the site; global weights of a federation reach it through the student.

    Args:
        ema_decay: Largest decay of the teacher.
        consistency_start: SSL4MIS starts at step 1,000.
        teacher_branch: Leave a second branch for the terms: the teacher's, without gradient, which
            sees the unlabelled images with noise and takes its pseudo-labels from the student. Its
            features are contrasted with the student's (MCSCv2 on Mean Teacher).
        **options: Those of `SemiSupervisedStep`.
    """

    def __init__(
        self,
        *,
        ema_decay: float = 0.99,
        consistency_start: int = 1000,
        teacher_branch: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(consistency_start=consistency_start, teacher=Teacher(ema_decay), **options)
        self.teacher_branch = teacher_branch

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the logits ``(B, C, H, W)``, the supervised and the consistency loss."""
        image, count = batch[CommonKeys.IMAGE], count_labelled(batch)
        output = engine.network(image)
        logits = main_logits(output)
        losses = self.supervised(logits, batch)
        taught = None
        if self.terms or (count < len(image) and self.consistency_weight):
            first = 0 if self.teacher_branch else count
            seen = torch.cat([image[first:count], noisy(image[count:])])
            taught = self.ask_teacher(engine, seen) if len(seen) else None
        if self.terms:
            self._leave_branches(batch, output, taught)
        if count < len(image) and self.consistency_weight:
            probabilities = main_logits(taught)[count - len(image) :].float().softmax(1)
            losses["consistency"] = self.consistency_weight * self.disagreement(
                engine, image[count:], logits[count:], probabilities
            )
        return logits, losses or self.absent(logits)

    def disagreement(
        self,
        engine: SupervisedTrainer,
        image: torch.Tensor,
        logits: torch.Tensor,
        taught: torch.Tensor,
    ) -> torch.Tensor:
        """Return the mean squared difference of student and teacher on unlabelled images.

        Args:
            engine: The trainer.
            image: Unlabelled images ``(B_u, 1, H, W)``.
            logits: The student's, ``(B_u, C, H, W)``.
            taught: The teacher's probabilities, same shape, of the images with noise.
        """
        del engine, image
        difference: torch.Tensor = (logits.float().softmax(1) - taught).square().mean()
        return difference

    def _leave_branches(self, batch: dict[str, Any], output: Any, taught: Any) -> None:
        if not self.teacher_branch:
            make_branches(batch, output, taught)
            return
        pair: dict[str, Any] = {"logits": (main_logits(output), main_logits(taught))}
        if isinstance(output, dict):
            pair["taps"] = (output["taps"], taught["taps"])
            pair["projected"] = {
                scale: (feature, taught["projected"][scale])
                for scale, feature in output.get("projected", {}).items()
            }
        make_branches(batch, pair)
