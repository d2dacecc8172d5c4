"""Interpolation consistency training: the prediction of a mixture is the mixture of predictions.

Verma et al., IJCAI 2019 (https://arxiv.org/abs/1903.03825), as in SSL4MIS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys

from medseg_kit.engines.semi_supervised import count_labelled
from medseg_kit.engines.step import Losses
from medseg_kit.methods.mean_teacher import MeanTeacherStep

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer


class InterpolationConsistencyStep(MeanTeacherStep):
    """Supervised loss, and agreement with the teacher on mixtures of two unlabelled images.

    Args:
        alpha: Both parameters of the Beta distribution of the mixing share.
        **options: Those of `MeanTeacherStep`; without a delayed start.
    """

    def __init__(self, *, alpha: float = 0.2, consistency_start: int = 0, **options: Any) -> None:
        super().__init__(consistency_start=consistency_start, **options)
        self.alpha = alpha

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the logits of the labelled images and the mixtures, and both losses."""
        image, count = batch[CommonKeys.IMAGE], count_labelled(batch)
        half = (len(image) - count) // 2
        if half == 0:  # nothing to mix
            logits = engine.network(image)
            return logits, self.supervised(logits, batch) or self.absent(logits)
        first, second = image[count : count + half], image[count + half : count + 2 * half]
        beta = torch.full((half,), self.alpha)
        share = torch.distributions.Beta(beta, beta).sample().to(image)[:, None, None, None]
        logits = engine.network(torch.cat([image[:count], torch.lerp(first, second, share)]))
        losses = self.supervised(logits, batch)
        one, other = (
            self.ask_teacher(engine, torch.cat([first, second])).float().softmax(1).chunk(2)
        )
        target = torch.lerp(one, other, share)
        difference = (logits[count:].float().softmax(1) - target).square().mean()
        losses["consistency"] = self.consistency_weight * difference
        return logits, losses
