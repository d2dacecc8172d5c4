"""CS-Unet: Swin-Unet with convolutions inside, 24,690,096 parameters with 4 classes at 224 px.

Liu et al., "Optimizing vision transformers for medical image segmentation", ICASSP 2023
(https://arxiv.org/abs/2210.08066). Needs no pre-trained weights and no positional information.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from monai.networks.layers import trunc_normal_
from torch import nn

from medseg_kit.networks import cs_feed_forward
from medseg_kit.networks.cs_blocks import (
    ConvEmbedding,
    ConvFusion,
    ConvOutput,
    ConvProjection,
    ConvUpsample,
    CvtProjection,
)
from medseg_kit.networks.swin_blocks import (
    LinearFusion,
    PatchEmbedding,
    PreNormMLP,
    WindowBlock,
    double_expand,
)
from medseg_kit.networks.window_attention import BlockPlace, LinearProjection, WindowAttention
from medseg_kit.networks.window_geometry import WindowGeometry
from medseg_kit.networks.window_unet import WindowParts, WindowUNet
from medseg_kit.typing import UserError

PROJECTIONS: Mapping[str, Callable[[int], nn.Module]] = {
    "window": ConvProjection,
    "cvt": CvtProjection,
    "linear": LinearProjection,
}
FEED_FORWARDS: Mapping[str, Callable[[int], nn.Module]] = {
    "single_conv": cs_feed_forward.single_conv,
    "residual": cs_feed_forward.residual,
    "preactivation": cs_feed_forward.preactivation,
    "resnext": cs_feed_forward.resnext,
}


@dataclass(frozen=True)
class BlockOptions:
    """Switches of a CS-Unet block; see `CSUNet`."""

    proj: str
    pos: bool
    att: bool
    dsf: bool
    ffn: str
    mlp_ratio: float
    layerscale_init: float

    def __post_init__(self) -> None:
        if self.proj not in PROJECTIONS:
            raise UserError(f"proj is {self.proj!r}; it must be one of {sorted(PROJECTIONS)}")
        if self.ffn != "mlp" and self.ffn not in FEED_FORWARDS:
            raise UserError(
                f"ffn is {self.ffn!r}; it must be one of {['mlp', *sorted(FEED_FORWARDS)]}"
            )
        if self.dsf and self.ffn != "mlp":
            raise UserError(f"ffn {self.ffn!r} has no effect while dsf is on; set dsf to false")


class CSUNet(WindowUNet):
    """CS-Unet: ``(B, in_channels, S, S) -> (B, out_channels, S, S)`` logits.

    The defaults are the paper's final model (method 6 of its ablation). With ``emb``, ``att``,
    ``dsf`` and ``sc`` off, ``proj: linear`` and ``pos`` on it has the structure of Swin-Unet.

    Args:
        in_channels: Channels of the image; one channel is repeated to three, as published.
        out_channels: Number of classes, background included.
        image_size: Side ``S`` of the square slice, in pixels.
        patch_size: Image pixels that the side of a token spans.
        window_size: Side of an attention window, in tokens.
        embed_dim: Channels of the first stage; they double a stage.
        depths: Blocks a stage; the decoder mirrors them.
        num_heads: Attention heads a stage.
        drop_path: Drop-path rate of the last encoder block; the rates grow linearly from 0.
        dropout: Dropout of the embedding, up-sampling and skips (public code, not in the paper).
        emb: Convolutional token embedding instead of patch embedding.
        proj: Query, key and value: "window" (depthwise convolution and layer norm inside each
            window), "cvt" (depthwise convolution, batch norm, linear layer) or "linear".
        pos: Relative position bias in the attention.
        att: Depthwise convolution and GELU after the attention instead of a linear layer.
        dsf: Depthwise separable feed-forward part.
        ffn: The feed-forward part where ``dsf`` is off: "mlp", "single_conv", "residual",
            "preactivation" or "resnext".
        sc: Convolutional skip fusion and up-sampling instead of linear ones.
        mlp_ratio: Hidden width of ``ffn: mlp``, in channels of its stage.
        layerscale_init: Initial LayerScale of ``dsf``; the paper states 1e-6, its code has 0.7.
        mcsc_head: Use MCSC's 3 x 3 head instead of a linear one without bias.
        conv_init_std: Of the convolutions' truncated normal weights, 0.02 in the public code; None
            for PyTorch's own, by fan-in. With 0.02 the depthwise convolutions all but silence the
            image at first: the network answers background for hundreds of steps.

    Raises:
        UserError: If ``image_size`` does not fit (it names the nearest that does), the heads do not
            divide the channels, or a switch is unknown or without effect.
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
        drop_path: float = 0.2,
        dropout: float = 0.2,
        emb: bool = True,
        proj: str = "window",
        pos: bool = False,
        att: bool = True,
        dsf: bool = True,
        ffn: str = "mlp",
        sc: bool = True,
        mlp_ratio: float = 4.0,
        layerscale_init: float = 1e-6,
        mcsc_head: bool = False,
        conv_init_std: float | None = 0.02,
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
        options = BlockOptions(proj, pos, att, dsf, ffn, mlp_ratio, layerscale_init)
        parts = WindowParts(
            embedding=partial(ConvEmbedding, dropout=dropout) if emb else PatchEmbedding,
            block=partial(cs_block, options=options),
            upsample=partial(ConvUpsample, dropout=dropout) if sc else double_expand,
            fusion=partial(ConvFusion, dropout=dropout) if sc else LinearFusion,
            initialise=partial(_initialise, conv_init_std=conv_init_std),
        )
        super().__init__(in_channels, out_channels, geometry, parts, mcsc_head=mcsc_head)


def cs_block(place: BlockPlace, options: BlockOptions) -> WindowBlock:
    """Return a convolutional Swin block, or what the switches leave of it."""
    dim = place.dim
    attention = WindowAttention(
        place,
        PROJECTIONS[options.proj](dim),
        ConvOutput(dim) if options.att else nn.Linear(dim, dim),
        relative_position=options.pos,
    )
    feed_forward = _feed_forward(place, options)
    return WindowBlock(attention, feed_forward, dim=dim, drop_path=place.drop_path)


def _feed_forward(place: BlockPlace, options: BlockOptions) -> nn.Module:
    if options.dsf:
        return cs_feed_forward.DepthwiseSeparableFeedForward(place.dim, options.layerscale_init)
    if options.ffn == "mlp":
        return PreNormMLP(place.dim, options.mlp_ratio, place.drop_path)
    return FEED_FORWARDS[options.ffn](place.dim)


def _initialise(module: nn.Module, conv_init_std: float | None) -> None:
    """Truncated normal weights of linear layers and convolutions, zero biases of linear layers."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.Conv2d) and conv_init_std is not None:
        trunc_normal_(module.weight, std=conv_init_std)
