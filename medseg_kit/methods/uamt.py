"""Uncertainty-aware Mean Teacher: the student follows the teacher where the teacher is certain.

Yu et al., MICCAI 2019 (https://arxiv.org/abs/1907.07034), as in SSL4MIS.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from medseg_kit.engines.schedules import gaussian_ramp
from medseg_kit.engines.semi_supervised import main_logits
from medseg_kit.methods.mean_teacher import MeanTeacherStep, noisy

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

SMALL = 1e-6


class UncertaintyMeanTeacherStep(MeanTeacherStep):
    """Mean Teacher whose consistency counts only pixels of low entropy.

    The entropy is that of the mean over stochastic teacher passes; its threshold rises from 3/4 to
    all of ln 2 (also with more than two classes, as in the code).

    Args:
        num_passes: Stochastic passes of the teacher, an even number.
        **options: Those of `MeanTeacherStep`; without a delayed start.
    """

    def __init__(self, *, num_passes: int = 8, consistency_start: int = 0, **options: Any) -> None:
        super().__init__(consistency_start=consistency_start, **options)
        if num_passes < 2 or num_passes % 2:
            raise ValueError(f"num_passes must be an even number, at least 2, got {num_passes}")
        self.num_passes = num_passes

    @property
    def threshold(self) -> float:
        """Largest entropy, in nats, that counts as certain."""
        return (0.75 + 0.25 * gaussian_ramp()(self.global_step, self.total_steps)) * math.log(2)

    def disagreement(
        self,
        engine: SupervisedTrainer,
        image: torch.Tensor,
        logits: torch.Tensor,
        taught: torch.Tensor,
    ) -> torch.Tensor:
        """Return the masked squared difference of student and teacher."""
        repeated = image.repeat(2, 1, 1, 1)
        mean = torch.zeros_like(taught)
        for _ in range(self.num_passes // 2):
            said = main_logits(self.ask_teacher(engine, noisy(repeated)))
            mean += said.float().softmax(1).unflatten(0, (2, -1)).sum(0)
        mean /= self.num_passes
        entropy = -(mean * (mean + SMALL).log()).sum(1, keepdim=True)
        certain = (entropy < self.threshold).float()
        distance = (logits.float().softmax(1) - taught).square()
        masked: torch.Tensor = (certain * distance).sum() / (2 * certain.sum() + 1e-16)
        return masked
