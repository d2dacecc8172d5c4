"""Rotation consistency of one network: SSL4MIS's "DCT".

Not the two-network adversarial deep co-training (Qiao et al., ECCV 2018) after which SSL4MIS and
the papers that compare with it name it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys

from medseg_kit.engines.semi_supervised import SemiSupervisedStep, count_labelled
from medseg_kit.engines.step import Losses

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer


class RotationConsistencyStep(SemiSupervisedStep):
    """Supervised loss, and agreement of an unlabelled image with its turned copy, both ways.

    The turned copies go through the network with the batch; square images only.
    """

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the logits ``(B, C, S, S)``, the supervised and the consistency loss."""
        image, count = batch[CommonKeys.IMAGE], count_labelled(batch)
        turns = int(torch.randint(0, 4, (1,)))
        turned = torch.rot90(image[count:], turns, (2, 3))
        logits, logits_of_turned = engine.network(torch.cat([image, turned])).split(
            [len(image), len(turned)]
        )
        losses = self.supervised(logits, batch)
        if len(turned):
            direct = torch.rot90(logits[count:].float().softmax(1), turns, (2, 3))
            other = logits_of_turned.float().softmax(1)
            difference = (other.detach() - direct).square().mean()
            difference = difference + (other - direct.detach()).square().mean()
            losses["consistency"] = self.consistency_weight * difference / 2
        return logits, losses or self.absent(logits)
