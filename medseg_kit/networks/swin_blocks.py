"""The layers of Swin-Unet: patch embedding, transformer block, patch expansion, skip fusion.

Cao et al., "Swin-Unet", ECCV Workshops 2022 (https://arxiv.org/abs/2105.05537).
All tokens are ``(B, H, W, C)``.
"""

from __future__ import annotations

import torch
from monai.networks.blocks import MLPBlock
from monai.networks.layers import DropPath
from torch import nn

from medseg_kit.networks.window_attention import BlockPlace, LinearProjection, WindowAttention


class PatchEmbedding(nn.Module):
    """Strided convolution over patches, then layer norm."""

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Embed an image ``(B, in_channels, H, W)`` as tokens ``(B, H / p, W / p, embed_dim)``."""
        tokens: torch.Tensor = self.norm(self.proj(image).permute(0, 2, 3, 1))
        return tokens


class PreNormMLP(nn.Module):
    """Residual feed-forward of a Swin block: ``x + DropPath(MLP(LN(x)))``."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, int(dim * mlp_ratio), act="GELU", dropout_mode="swin")
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        update: torch.Tensor = self.drop_path(self.mlp(self.norm(tokens)))
        return tokens + update


class WindowBlock(nn.Module):
    """Residual window attention, then a feed-forward part that holds its own residual.

    Args:
        attention: Attention over tokens ``(B, H, W, C)``.
        feed_forward: The second half of the block.
        dim: Channels.
        drop_path: Probability of skipping the attention of a sample.
    """

    def __init__(
        self, attention: nn.Module, feed_forward: nn.Module, *, dim: int, drop_path: float
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = attention
        self.drop_path = DropPath(drop_path)
        self.feed_forward = feed_forward

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        tokens = tokens + self.drop_path(self.attention(self.norm(tokens)))
        result: torch.Tensor = self.feed_forward(tokens)
        return result


class PatchExpand(nn.Module):
    """Linear layer whose channels are rearranged into a map ``factor`` times as wide; layer norm.

    Args:
        dim: Channels before.
        out_dim: Channels after.
        factor: How many times wider and higher the map becomes.
    """

    def __init__(self, dim: int, out_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(dim, factor * factor * out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Expand ``(B, H, W, dim)`` to ``(B, factor * H, factor * W, out_dim)``."""
        batch, height, width, _ = tokens.shape
        factor = self.factor
        split = self.expand(tokens).view(batch, height, width, factor, factor, -1)
        rows = split.permute(0, 1, 3, 2, 4, 5)
        expanded = rows.reshape(batch, height * factor, width * factor, -1)
        result: torch.Tensor = self.norm(expanded)
        return result


class LinearFusion(nn.Module):
    """Joins up-sampled and skipped tokens with a linear layer, ``(B, H, W, dim)``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, dim)

    def forward(self, tokens: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Return tokens ``(B, H, W, dim)`` of two such maps."""
        fused: torch.Tensor = self.linear(torch.cat([tokens, skip], dim=-1))
        return fused


def swin_block(place: BlockPlace, mlp_ratio: float = 4.0) -> WindowBlock:
    """Return a Swin transformer block with relative position bias."""
    attention = WindowAttention(
        place, LinearProjection(place.dim), nn.Linear(place.dim, place.dim), relative_position=True
    )
    feed_forward = PreNormMLP(place.dim, mlp_ratio, place.drop_path)
    return WindowBlock(attention, feed_forward, dim=place.dim, drop_path=place.drop_path)


def double_expand(dim: int) -> PatchExpand:
    """Return the up-sampling of Swin-Unet: twice the side, half the channels."""
    return PatchExpand(dim, dim // 2, 2)
