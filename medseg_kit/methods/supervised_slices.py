"""Supervised training of a 2-D network: the lower and upper bound of the semi-supervised tables.

With a label budget it is the lower bound (LS), with all labels the upper bound (FS); SSL4MIS (Luo
et al. 2022, https://github.com/HiLab-git/SSL4MIS). Also the training of CS-Unet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys

from medseg_kit.engines.semi_supervised import SemiSupervisedStep, count_labelled
from medseg_kit.engines.step import Losses

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer


class SupervisedSliceStep(SemiSupervisedStep):
    """Cross-entropy and Dice of the labelled images; the network does not see the others.

    A site without labelled cases has nothing to learn from: its loss is 0.
    """

    learns_from_unlabelled = False

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the logits of the labelled images (all images if none is) and their loss."""
        count = count_labelled(batch) or len(batch[CommonKeys.IMAGE])
        logits = engine.network(batch[CommonKeys.IMAGE][:count])
        return logits, self.supervised(logits, batch) or self.absent(logits)
