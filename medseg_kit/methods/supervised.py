"""Supervised training of one ordinary 1 + K network, with full or partial labels.

With ``partial_labels: background`` every organ that a case does not annotate counts as background
(central aggregation and conventional federated averaging of the SegViz poster); with ``marginal``
it is left open (the marginal loss of https://arxiv.org/abs/2308.04070).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys

from medseg_kit.engines.step import Losses, TrainStep, annotated_classes
from medseg_kit.losses.partial import marginal_loss

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

PARTIAL_LABELS = ("background", "marginal")


class SupervisedStep(TrainStep):
    """Dice and cross-entropy of one softmax over background and all organs.

    Args:
        organs: All organs, in label order.
        partial_labels: What an organ that a case does not annotate is: "background" or
            "marginal" (unknown).
        **options: Those of `TrainStep`.

    Raises:
        ValueError: For another value of ``partial_labels``.
    """

    def __init__(
        self, organs: Sequence[str], *, partial_labels: str = "marginal", **options: Any
    ) -> None:
        super().__init__(**options)
        if partial_labels not in PARTIAL_LABELS:
            raise ValueError(
                f"partial_labels must be one of {PARTIAL_LABELS}, got {partial_labels!r}"
            )
        self.organs = list(organs)
        self.partial_labels = partial_labels

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the logits ``(B, 1 + K, ...)`` and the segmentation loss."""
        logits = engine.network(batch[CommonKeys.IMAGE])
        known = annotated_classes(batch, 1 + len(self.organs))
        if self.partial_labels == "background":
            known = torch.ones_like(known)
        return logits, {"segmentation": marginal_loss(logits, batch[CommonKeys.LABEL], known)}
