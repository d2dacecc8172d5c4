"""Mean Teacher: the student agrees with its moving average on noisy unlabelled images.

Tarvainen and Valpola, NeurIPS 2017 (https://arxiv.org/abs/1703.01780), as in SSL4MIS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys

from medseg_kit.engines.semi_supervised import SemiSupervisedStep, count_labelled
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

    The teacher is state of the site; global weights of a federation reach it through the student.

    Args:
        ema_decay: Largest decay of the teacher.
        consistency_start: SSL4MIS starts at step 1,000.
        **options: Those of `SemiSupervisedStep`.
    """

    def __init__(
        self, *, ema_decay: float = 0.99, consistency_start: int = 1000, **options: Any
    ) -> None:
        super().__init__(consistency_start=consistency_start, **options)
        self.teacher = Teacher(ema_decay)

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the logits ``(B, C, H, W)``, the supervised and the consistency loss."""
        image, count = batch[CommonKeys.IMAGE], count_labelled(batch)
        logits = engine.network(image)
        losses = self.supervised(logits, batch)
        if count < len(image) and self.consistency_weight:
            losses["consistency"] = self.consistency_weight * self.disagreement(
                engine, image[count:], logits[count:]
            )
        return logits, losses or self.absent(logits)

    def disagreement(
        self, engine: SupervisedTrainer, image: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean squared difference of student and teacher on unlabelled images."""
        with torch.no_grad():
            taught = self.teacher.of(engine.network)(noisy(image)).float().softmax(1)
        difference: torch.Tensor = (logits.float().softmax(1) - taught).square().mean()
        return difference

    def after_step(self, engine: SupervisedTrainer) -> None:
        """Move the teacher; ``global_step`` already counts the step that was done."""
        self.teacher.follow(engine.network, self.global_step - 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state and the teacher."""
        return {**super().state_dict(), "teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.teacher.load_state_dict(state["teacher"])
