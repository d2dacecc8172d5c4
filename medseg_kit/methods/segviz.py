"""SegViz's training step: each head learns from the cases that annotate its organ.

Kanhere et al. 2023, https://arxiv.org/abs/2301.07074, section 3.1. The federation itself is a
strategy, `medseg_kit.fl.strategies.selective`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys

from medseg_kit.engines.step import Losses, TrainStep, annotated_classes
from medseg_kit.losses.partial import LossFunction, multi_head_losses

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer


class SegVizStep(TrainStep):
    """Mean over the heads of the loss on the organ that each head owns.

    Args:
        organs: All organs, in label order.
        loss_function: Loss of two-channel logits against ``(B, 1, ...)`` indices; the paper's is
            MONAI's ``DiceLoss(to_onehot_y=True, softmax=True)``.
        **options: Those of `TrainStep`.
    """

    def __init__(self, organs: Sequence[str], loss_function: LossFunction, **options: Any) -> None:
        super().__init__(**options)
        self.organs = list(organs)
        self.loss_function = loss_function

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[dict[str, torch.Tensor], Losses]:
        """Return the logits of each head and ``{organ: loss / number of heads}``."""
        logits = engine.network(batch[CommonKeys.IMAGE])["logits"]
        known = annotated_classes(batch, 1 + len(self.organs))
        losses = multi_head_losses(
            logits,
            batch[CommonKeys.LABEL],
            known,
            organs=self.organs,
            loss_function=self.loss_function,
        )
        return logits, {organ: loss / len(losses) for organ, loss in losses.items()}
