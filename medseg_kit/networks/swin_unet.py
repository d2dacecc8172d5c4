"""Swin-Unet for slices: 27,168,420 parameters with 4 classes at 224 px.

Cao et al., "Swin-Unet: Unet-like pure transformer for medical image segmentation", ECCV Workshops
2022 (https://arxiv.org/abs/2105.05537).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from monai.networks.layers import trunc_normal_
from torch import nn

from medseg_kit.networks.swin_blocks import (
    LinearFusion,
    PatchEmbedding,
    double_expand,
    swin_block,
)
from medseg_kit.networks.swin_weights import load_swin_weights
from medseg_kit.networks.window_geometry import WindowGeometry
from medseg_kit.networks.window_unet import WindowParts, WindowUNet
from medseg_kit.typing import PathLike


class SwinUNet2D(WindowUNet):
    """Swin-Unet: ``(B, in_channels, S, S) -> (B, out_channels, S, S)`` logits.

    Args:
        in_channels: Channels of the image; one channel is repeated to three, as published.
        out_channels: Number of classes, background included.
        image_size: Side ``S`` of the square slice, in pixels.
        patch_size: Side of a patch, in pixels.
        window_size: Side of an attention window, in patches.
        embed_dim: Channels of the first stage; they double a stage.
        depths: Blocks a stage; the decoder mirrors them.
        num_heads: Attention heads a stage.
        mlp_ratio: Hidden width of the feed-forward part, in channels of its stage.
        drop_path: Drop-path rate of the last encoder block; the rates grow linearly from 0.
        mcsc_head: Use MCSC's 3 x 3 head instead of a linear one without bias.
        pretrained_path: Weights of ``swin_tiny_patch4_window7_224`` to start encoder and decoder
            from, as in the paper, or of a `SwinUNet2D` of the same sizes, e.g. after
            `MaskedImageStep`; ``pretrained`` then reports what was loaded. Random otherwise, which
            is not comparable with the paper.

    Raises:
        UserError: If ``image_size`` does not fit (it names the nearest that does), the heads do not
            divide the channels, or the weights cannot be read or do not fit.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each argument is an id of the configuration
        self,
        in_channels: int,
        out_channels: int,
        image_size: int = 224,
        patch_size: int = 4,
        window_size: int = 7,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.2,
        mcsc_head: bool = False,
        pretrained_path: PathLike | None = None,
    ) -> None:
        geometry = WindowGeometry(
            image_size,
            patch_size,
            window_size,
            embed_dim,
            tuple(depths),
            tuple(num_heads),
            drop_path,
        )
        parts = WindowParts(
            embedding=PatchEmbedding,
            block=partial(swin_block, mlp_ratio=mlp_ratio),
            upsample=double_expand,
            fusion=LinearFusion,
            initialise=_initialise,
        )
        super().__init__(in_channels, out_channels, geometry, parts, mcsc_head=mcsc_head)
        self.pretrained = (
            None if pretrained_path is None else load_swin_weights(self, pretrained_path)
        )


def _initialise(module: nn.Module) -> None:
    """Truncated normal weights of linear layers, zero biases; convolutions keep torch's default."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
