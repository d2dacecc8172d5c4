"""Self-supervised pre-training of a 2-D network: fill in the masked patches of unlabelled slices.

Xie et al., "SimMIM: a simple framework for masked image modeling", CVPR 2022
(https://arxiv.org/abs/2111.09886). There a token stands for a masked patch of the transformer;
here the image's mean stands for its pixels, so that any network can be trained, its decoder, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys

from medseg_kit.engines.step import Losses, TrainStep

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer


class MaskedImageStep(TrainStep):
    """Absolute difference between image and answer where the image was masked; uses no label.

    The network answers with as many channels as the image has.

    Args:
        mask_ratio: Share of the patches that is masked, in (0, 1) (the paper: 0.6).
        mask_size: Side of a patch in pixels (the paper: 32 at 192 px, a sixth of the image); the
            last row and column may be cut.
        **options: Those of `TrainStep`.

    Raises:
        ValueError: If the ratio or the size is out of range.
    """

    def __init__(self, *, mask_ratio: float = 0.6, mask_size: int = 16, **options: Any) -> None:
        super().__init__(**options)
        if not 0 < mask_ratio < 1 or mask_size < 1:
            raise ValueError(
                f"mask_ratio is a share in (0, 1), got {mask_ratio}; "
                f"mask_size is at least 1 pixel, got {mask_size}"
            )
        self.mask_ratio = mask_ratio
        self.mask_size = mask_size

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the filled images ``(B, C, H, W)`` and the mean difference in masked pixels."""
        image = batch[CommonKeys.IMAGE]
        mask = patch_mask(image, self.mask_ratio, self.mask_size)
        mean = image.mean((2, 3), keepdim=True)
        pred = engine.network(torch.where(mask, mean, image))
        if pred.shape != image.shape:
            raise ValueError(
                f"the network answers {tuple(pred.shape)} to images {tuple(image.shape)}: "
                f"give it out_channels {image.shape[1]}"
            )
        gap = (pred.float() - image.float()).abs()
        share = mask.expand_as(gap).float()
        return pred, {"masked": (gap * share).sum() / share.sum()}


def patch_mask(image: torch.Tensor, mask_ratio: float, mask_size: int) -> torch.Tensor:
    """Return which pixels are masked, ``(B, 1, H, W)`` bool; as many patches in every image.

    Args:
        image: ``(B, C, H, W)``, for its shape and device.
        mask_ratio: Share of the patches, of which at least one is masked.
        mask_size: Side of a patch in pixels.
    """
    height, width = image.shape[-2:]
    rows, columns = -(-height // mask_size), -(-width // mask_size)
    count = max(1, round(mask_ratio * rows * columns))
    order = torch.rand(len(image), rows * columns).argsort(1).argsort(1)
    mask = (order < count).view(-1, 1, rows, columns).to(image.device)
    whole = mask.repeat_interleave(mask_size, 2).repeat_interleave(mask_size, 3)
    return whole[..., :height, :width]
