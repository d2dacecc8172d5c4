"""The 2-D U-Net with which the semi-supervised literature compares its methods.

Ronneberger et al., "U-Net", MICCAI 2015 (https://arxiv.org/abs/1505.04597), in the form of the
SSL4MIS benchmark: batch norm, dropout that grows with depth, 1 x 1 convolution and bilinear
interpolation on the way up. 1,813,764 parameters with 4 classes (a paper prints 7.8 M for it).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from medseg_kit.networks import heads
from medseg_kit.networks.taps import TAP_NAMES, Taps
from medseg_kit.typing import UserError

CHANNELS = (16, 32, 64, 128, 256)
DROPOUT = (0.05, 0.1, 0.2, 0.3, 0.5)


class UNet2D(nn.Module):
    """U-Net of a slice: ``(B, in_channels, H, W) -> (B, out_channels, H, W)`` logits.

    Args:
        in_channels: Channels of the image.
        out_channels: Number of classes, background included.
        channels: Features a level, top first. The image sides must be divisible by 2 to the power
            of the number of levels less one (16 by default).
        dropout: Dropout probability of the encoder block of each level.
        mcsc_head: Initialise the 3 x 3 head as MCSC does (Xavier-normal).

    Raises:
        UserError: If ``channels`` and ``dropout`` differ in length.
    """

    token_taps: tuple[str, ...] = ()

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = CHANNELS,
        dropout: Sequence[float] = DROPOUT,
        mcsc_head: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) != len(dropout) or len(channels) < 2:
            raise UserError(
                f"channels {list(channels)} and dropout {list(dropout)} must have one entry a level"
            )
        self.divisor = 2 ** (len(channels) - 1)
        self.encoder = UNetEncoder(in_channels, channels, dropout)
        self.decoder = UNetDecoder(out_channels, channels, mcsc_head=mcsc_head)
        self.tap_channels = {
            TAP_NAMES[2**level]: width
            for level, width in enumerate(channels[:-1])
            if 2**level in TAP_NAMES
        }

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits ``(B, out_channels, H, W)``.

        Raises:
            UserError: If a side of the image is not divisible by ``divisor``.
        """
        check_divisible(image, self.divisor)
        return self.decoder.logits(self.encoder(image))

    def forward_features(self, image: torch.Tensor) -> tuple[torch.Tensor, Taps]:
        """Return logits and taps; see `medseg_kit.networks.taps.Student`."""
        decoded = self.features(image)
        taps = {
            TAP_NAMES[2**level]: features
            for level, features in enumerate(reversed(decoded))
            if 2**level in TAP_NAMES
        }
        return self.decoder.head(decoded[-1]), taps

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the decoder's maps, coarsest first: 128 @ 28, 64 @ 56, 32 @ 112, 16 @ 224."""
        check_divisible(image, self.divisor)
        decoded: list[torch.Tensor] = self.decoder(self.encoder(image))
        return decoded


class UNetEncoder(nn.Module):
    """Convolution block, then max pooling and a block a level; returns one map a level."""

    def __init__(self, in_channels: int, channels: Sequence[int], dropout: Sequence[float]) -> None:
        super().__init__()
        inputs = [in_channels, *channels[:-1]]
        self.blocks = nn.ModuleList(
            conv_block(before, after, rate)
            for before, after, rate in zip(inputs, channels, dropout)
        )
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return maps ``(B, channels[i], H / 2^i, W / 2^i)``, finest first."""
        maps: list[torch.Tensor] = []
        for level, block in enumerate(self.blocks):
            x = block(self.pool(x) if level else x)
            maps.append(x)
        return maps


class UNetDecoder(nn.Module):
    """Mirror of the encoder and head."""

    def __init__(
        self, out_channels: int, channels: Sequence[int], *, mcsc_head: bool = False
    ) -> None:
        super().__init__()
        widths = list(reversed(channels))
        pairs = list(pairwise(widths))
        self.narrow = nn.ModuleList(nn.Conv2d(low, skip, kernel_size=1) for low, skip in pairs)
        self.blocks = nn.ModuleList(conv_block(2 * skip, skip, 0.0) for _, skip in pairs)
        self.upsample = nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True)
        self.head = (
            heads.mcsc_head(channels[0], out_channels)
            if mcsc_head
            else nn.Conv2d(channels[0], out_channels, kernel_size=3, padding=1)
        )

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Decode the encoder's maps (finest first) to one map a step, coarsest first."""
        x = maps[-1]
        decoded: list[torch.Tensor] = []
        for step, (narrow, block) in enumerate(zip(self.narrow, self.blocks)):
            skip = maps[len(maps) - 2 - step]
            x = block(torch.cat([skip, self.upsample(narrow(x))], dim=1))
            decoded.append(x)
        return decoded

    def logits(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Return the logits ``(B, out_channels, H, W)`` of the encoder's maps."""
        logits: torch.Tensor = self.head(self(maps)[-1])
        return logits


def conv_block(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Return twice 3 x 3 convolution, batch norm and leaky ReLU, with dropout in between."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(inplace=True),
    )


def check_divisible(image: torch.Tensor, divisor: int) -> None:
    """Refuse an image whose sides a network cannot halve often enough.

    Raises:
        UserError: If a side is not divisible by ``divisor``; it names the nearest size that is.
    """
    size = [int(side) for side in image.shape[2:]]
    if any(side % divisor for side in size):
        nearest = [max(1, (side + divisor // 2) // divisor) * divisor for side in size]
        raise UserError(
            f"image size {size} must be divisible by {divisor}; the nearest that fits is {nearest}"
        )
