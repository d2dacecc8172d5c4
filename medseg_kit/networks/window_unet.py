"""The U-shaped skeleton that Swin-Unet and CS-Unet share; they differ in the parts it is built of.

Cao et al., "Swin-Unet", ECCV Workshops 2022 (https://arxiv.org/abs/2105.05537).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch import nn

from medseg_kit.networks import heads
from medseg_kit.networks.swin_blocks import PatchExpand
from medseg_kit.networks.taps import TAP_NAMES, Taps
from medseg_kit.networks.window_attention import BlockPlace
from medseg_kit.networks.window_geometry import WindowGeometry
from medseg_kit.typing import UserError


@dataclass(frozen=True)
class WindowParts:
    """What the skeleton is built of; all tokens are ``(B, H, W, C)``.

    Attributes:
        embedding: ``(image channels, embed_dim, patch_size)`` to a module image -> tokens.
        block: The transformer block at a place.
        upsample: ``dim`` to a module that doubles the side and halves the channels.
        fusion: ``dim`` to a module ``(tokens, skip) -> tokens``, all with ``dim`` channels.
        initialise: Called on every module of the finished network.
    """

    embedding: Callable[[int, int, int], nn.Module]
    block: Callable[[BlockPlace], nn.Module]
    upsample: Callable[[int], nn.Module]
    fusion: Callable[[int], nn.Module]
    initialise: Callable[[nn.Module], None]


class WindowUNet(nn.Module):
    """U-shaped network of window transformers for square slices.

    ``(B, in_channels, S, S) -> (B, out_channels, S, S)`` logits, ``S`` the geometry's image size.
    Taps are the tokens after each decoder stage and the map before the head.

    Args:
        in_channels: Channels of the image; one channel is repeated to three, as published.
        out_channels: Number of classes, background included.
        geometry: Sizes of the stages.
        parts: What the network is built of.
        mcsc_head: Use MCSC's 3 x 3 head instead of a linear one without bias.
    """

    token_taps: tuple[str, ...] = ("quarter", "eighth")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        geometry: WindowGeometry,
        parts: WindowParts,
        *,
        mcsc_head: bool = False,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        dims, levels = geometry.dims, len(geometry.dims)
        places = geometry.places()
        self.embedding = parts.embedding(
            3 if in_channels == 1 else in_channels, dims[0], geometry.patch_size
        )
        self.encoder = nn.ModuleList(
            EncoderStage(
                places[level],
                parts.block,
                PatchMergingV2(dims[level], spatial_dims=2) if level < levels - 1 else None,
            )
            for level in range(levels)
        )
        self.norm = nn.LayerNorm(dims[-1])
        self.upsample = parts.upsample(dims[-1])
        self.decoder = nn.ModuleList(
            DecoderStage(
                parts.fusion(dims[level]),
                places[level],
                parts.block,
                parts.upsample(dims[level]) if level else None,
            )
            for level in reversed(range(levels - 1))
        )
        self.decoder_norm = nn.LayerNorm(dims[0])
        self.final_expand = PatchExpand(dims[0], dims[0], geometry.patch_size)
        self.head: nn.Module = nn.Conv2d(dims[0], out_channels, kernel_size=1, bias=False)
        self.apply(parts.initialise)
        if mcsc_head:
            self.head = heads.mcsc_head(dims[0], out_channels)
        self.tap_channels = geometry.tap_channels()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits ``(B, out_channels, S, S)``.

        Raises:
            UserError: If the image is not square of the size that the network was built for.
        """
        return self.forward_features(image)[0]

    def forward_features(self, image: torch.Tensor) -> tuple[torch.Tensor, Taps]:
        """Return logits and taps; see `medseg_kit.networks.taps.Student`."""
        self._check_size(image)
        # A copy: convolutions of an expanded tensor, or of the other memory format, are far slower.
        image = image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image
        tokens = self.embedding(image.contiguous(memory_format=torch.channels_last))
        skips: list[torch.Tensor] = []
        for stage in self.encoder:
            skips.append(tokens)
            tokens = stage(tokens)
        tokens = self.upsample(self.norm(tokens))
        taps: Taps = {}
        stride = self.geometry.patch_size * 2 ** (len(self.decoder) - 1)
        for skip, stage in zip(reversed(skips[:-1]), self.decoder):
            tokens = stage(tokens, skip)
            stride //= 2
            if stride in TAP_NAMES and stride >= self.geometry.patch_size:
                taps[TAP_NAMES[stride]] = tokens.permute(0, 3, 1, 2)
        taps["full"] = self.final_expand(self.decoder_norm(tokens)).permute(0, 3, 1, 2)
        return self.head(taps["full"]), taps

    def _check_size(self, image: torch.Tensor) -> None:
        side = self.geometry.image_size
        if image.shape[2] != side or image.shape[3] != side:
            raise UserError(
                f"image size {[int(s) for s in image.shape[2:]]} does not fit: the network was "
                f"built for image_size {side}; the size that fits is [{side}, {side}]"
            )


class EncoderStage(nn.Module):
    """Blocks at one resolution, then patch merging except at the bottom."""

    def __init__(
        self,
        places: Sequence[BlockPlace],
        block: Callable[[BlockPlace], nn.Module],
        downsample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(place) for place in places)
        self.downsample = downsample

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens ``(B, H / 2, W / 2, 2 * C)``, or of the same shape at the bottom."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens if self.downsample is None else self.downsample(tokens)


class DecoderStage(nn.Module):
    """Fusion with the skip, blocks, then up-sampling except at the top."""

    def __init__(
        self,
        fusion: nn.Module,
        places: Sequence[BlockPlace],
        block: Callable[[BlockPlace], nn.Module],
        upsample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.blocks = nn.ModuleList(block(place) for place in places)
        self.upsample = upsample

    def forward(self, tokens: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Return tokens ``(B, 2 * H, 2 * W, C / 2)``, or of the same shape at the top."""
        tokens = self.fusion(tokens, skip)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens if self.upsample is None else self.upsample(tokens)
