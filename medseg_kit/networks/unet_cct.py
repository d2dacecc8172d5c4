"""U-Net with three further decoders that see perturbed features (cross-consistency training).

Ouali et al., "Semi-supervised semantic segmentation with cross-consistency training", CVPR 2020
(https://arxiv.org/abs/2003.09005), in the form of the SSL4MIS benchmark.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from medseg_kit.networks.unet2d import CHANNELS, DROPOUT, UNet2D, UNetDecoder, check_divisible

Decoders = Sequence[UNetDecoder]

NOISE_RANGE = 0.3
DROPOUT_RATE = 0.3
ATTENTION_THRESHOLDS = (0.7, 0.9)


class UNetCCT(UNet2D):
    """`UNet2D` with auxiliary decoders; its state holds that of the plain U-Net, key by key.

    In training mode the forward returns ``{"logits": main, "auxiliary": (a1, a2, a3)}``, each
    ``(B, out_channels, H, W)``; in evaluation mode the logits of the main decoder. The encoder
    maps of the auxiliary decoders are perturbed by noise, by dropout, and by removing the most
    active places.

    Args:
        in_channels: Channels of the image.
        out_channels: Number of classes, background included.
        channels: Features a level, top first.
        dropout: Dropout probability of the encoder block of each level.

    Raises:
        UserError: If ``channels`` and ``dropout`` differ in length.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = CHANNELS,
        dropout: Sequence[float] = DROPOUT,
    ) -> None:
        super().__init__(in_channels, out_channels, channels, dropout)
        self.perturbations: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
            feature_noise,
            feature_dropout,
            attention_dropout,
        )
        self.auxiliary = nn.ModuleList(
            UNetDecoder(out_channels, channels) for _ in self.perturbations
        )

    def plain(self) -> UNet2D:
        """Return encoder and main decoder, with the same weights: what a bundle deploys."""
        network = copy.copy(self)
        network.__class__ = UNet2D  # type: ignore[assignment]
        network._modules = {name: self._modules[name] for name in ("encoder", "decoder")}
        return network

    def forward(self, image: torch.Tensor) -> Any:
        """Segment ``image`` ``(B, in_channels, H, W)``; see the class for the result.

        Raises:
            UserError: If a side of the image is not divisible by ``divisor``.
        """
        if not self.training:
            return super().forward(image)
        check_divisible(image, self.divisor)
        maps = self.encoder(image)
        auxiliary = tuple(
            decoder.logits([perturb(features) for features in maps])
            for perturb, decoder in zip(self.perturbations, cast("Decoders", self.auxiliary))
        )
        return {"logits": self.decoder.logits(maps), "auxiliary": auxiliary}


def feature_noise(features: torch.Tensor) -> torch.Tensor:
    """Multiply ``(B, C, H, W)`` by ``1 + n``, ``n`` uniform and the same for all images."""
    noise = torch.empty_like(features[:1]).uniform_(-NOISE_RANGE, NOISE_RANGE)
    return torch.addcmul(features, features, noise)


def feature_dropout(features: torch.Tensor) -> torch.Tensor:
    """Drop single values of ``(B, C, H, W)``."""
    return F.dropout(features, DROPOUT_RATE, training=True)


def attention_dropout(features: torch.Tensor) -> torch.Tensor:
    """Drop the places of ``(B, C, H, W)`` whose mean activation is near the image's maximum."""
    activation = features.detach().mean(dim=1, keepdim=True)
    factor = torch.empty((), device=features.device).uniform_(*ATTENTION_THRESHOLDS)
    threshold = activation.amax(dim=(2, 3), keepdim=True) * factor
    return features * (activation < threshold)
