"""Cross-consistency training: auxiliary decoders on perturbed features agree with the main one.

Ouali et al., CVPR 2020 (https://arxiv.org/abs/2003.09005), as in SSL4MIS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys

from medseg_kit.engines.semi_supervised import SemiSupervisedStep, count_labelled
from medseg_kit.engines.step import Losses

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer


class CrossConsistencyStep(SemiSupervisedStep):
    """Mean supervised loss of all decoders, and the auxiliary ones' mean squared difference.

    Needs a network that returns ``{"logits", "auxiliary"}`` in training mode, such as `UNetCCT`.
    """

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the main decoder's logits ``(B, C, H, W)`` and both losses."""
        count = count_labelled(batch)
        output = engine.network(batch[CommonKeys.IMAGE])
        main, auxiliary = output["logits"], output["auxiliary"]
        losses: Losses = {}
        if count:
            parts = [self.supervised(logits, batch)["supervised"] for logits in (main, *auxiliary)]
            losses["supervised"] = torch.stack(parts).mean()
        if count < len(main):
            mean = main[count:].float().softmax(1)
            differences = [
                (mean - logits[count:].float().softmax(1)).square().mean() for logits in auxiliary
            ]
            losses["consistency"] = self.consistency_weight * torch.stack(differences).mean()
        return main, losses or self.absent(main)
