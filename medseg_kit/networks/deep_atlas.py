"""A segmentation and a registration network in one, for DeepAtlas.

Xu and Niethammer, "DeepAtlas: joint semi-supervised learning of image registration and
segmentation", MICCAI 2019 (https://arxiv.org/abs/1904.08465); in 2-D, approximate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from medseg_kit.networks.unet2d import UNet2D

CHANNELS = (16, 32, 32, 32, 32)
INITIAL_STD = 1e-5  # the first displacements are all but 0, as in VoxelMorph


class DeepAtlasNetwork(nn.Module):
    """Segments slices, and in training finds the displacements between pairs of them.

    In training mode with partners the forward returns ``{"logits", "displacement"}``, else the
    logits. The keys of the state are ``segmenter.*`` (what is deployed) and ``registration.*``.

    Args:
        segmenter: ``(B, 1, H, W) -> (B, C, H, W)`` logits.
        channels: Features a level of the registration network, a U-Net.
    """

    def __init__(self, segmenter: nn.Module, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.registration = UNet2D(2, 2, channels, dropout=[0.0] * len(channels))
        head = self.registration.decoder.head
        nn.init.normal_(head.weight, std=INITIAL_STD)
        nn.init.constant_(head.get_parameter("bias"), 0.0)

    def forward(self, image: torch.Tensor, partner: torch.Tensor | None = None) -> Any:
        """Segment ``image`` ``(B, 1, H, W)``; see the class for the result.

        Args:
            image: Slices.
            partner: Position of each slice's moving slice, ``(B,)`` long: the displacement
                ``(B, 2, H, W)``, rows then columns in pixels, leads from a pixel of the slice to
                the same place in its partner.
        """
        logits = self.segmenter(image)
        if not self.training or partner is None:
            return logits
        displacement = self.registration(torch.cat([image, image[partner]], dim=1))
        return {"logits": logits, "displacement": displacement}
