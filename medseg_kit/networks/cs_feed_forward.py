"""Feed-forward parts of a CS-Unet block: the paper's own and the four it is compared with.

Liu et al., "Optimizing vision transformers for medical image segmentation", ICASSP 2023
(https://arxiv.org/abs/2210.08066). The widths of the four alternatives are not printed: here each
keeps the width of its stage, so their results are approximate. Every part holds exactly one
residual and takes tokens ``(B, H, W, C)`` without a norm before it.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from medseg_kit.networks.cs_blocks import TokenConv

RESNEXT_GROUPS = 32


class DepthwiseSeparableFeedForward(nn.Module):
    """DSF: depthwise 7 x 7, layer norm, two pointwise layers, LayerScale, residual.

    Args:
        dim: Channels.
        layerscale_init: Initial factor of each channel of the residual branch. The paper states
            1e-6, with which the part starts as the identity; its public code has 0.7.
    """

    def __init__(self, dim: int, layerscale_init: float = 1e-6) -> None:
        super().__init__()
        self.depthwise = TokenConv(dim, dim, 7, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pointwise = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.gamma = nn.Parameter(torch.full((dim,), layerscale_init))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        update = self.pointwise(self.norm(self.depthwise(tokens)))
        return torch.addcmul(tokens, self.gamma, update)


class ResidualFeedForward(nn.Module):
    """``tokens + layers(tokens)``, optionally with an activation after the sum."""

    def __init__(self, layers: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = layers
        self.activation = activation or nn.Identity()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        result: torch.Tensor = self.activation(tokens + self.layers(tokens))
        return result


def single_conv(dim: int) -> ResidualFeedForward:
    """Return a 3 x 3 convolution, layer norm and GELU, added to the input."""
    return ResidualFeedForward(nn.Sequential(TokenConv(dim, dim, 3), nn.LayerNorm(dim), nn.GELU()))


def residual(dim: int) -> ResidualFeedForward:
    """Return the basic block of ResNet (https://arxiv.org/abs/1512.03385)."""
    layers = nn.Sequential(
        TokenConv(dim, dim, 3),
        nn.LayerNorm(dim),
        nn.GELU(),
        TokenConv(dim, dim, 3),
        nn.LayerNorm(dim),
    )
    return ResidualFeedForward(layers, nn.GELU())


def preactivation(dim: int) -> ResidualFeedForward:
    """Return the residual block with norm and activation first (https://arxiv.org/abs/1603.05027)."""
    return ResidualFeedForward(
        nn.Sequential(
            nn.LayerNorm(dim),
            nn.GELU(),
            TokenConv(dim, dim, 3),
            nn.LayerNorm(dim),
            nn.GELU(),
            TokenConv(dim, dim, 3),
        )
    )


def resnext(dim: int) -> ResidualFeedForward:
    """Return the block of ResNeXt (https://arxiv.org/abs/1611.05431) with half the width inside.

    The grouped convolution has 32 groups, or the largest divisor of 32 that the width allows.
    """
    width = dim // 2
    layers = nn.Sequential(
        nn.Linear(dim, width),
        nn.LayerNorm(width),
        nn.GELU(),
        TokenConv(width, width, 3, groups=math.gcd(RESNEXT_GROUPS, width)),
        nn.LayerNorm(width),
        nn.GELU(),
        nn.Linear(width, dim),
        nn.LayerNorm(dim),
    )
    return ResidualFeedForward(layers, nn.GELU())
