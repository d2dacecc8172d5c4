"""The convolutional layers of CS-Unet: embedding, projections, feed-forward, up-sampling, skips.

Liu et al., "Optimizing vision transformers for medical image segmentation", ICASSP 2023
(https://arxiv.org/abs/2210.08066). All tokens are ``(B, H, W, C)``; windows ``(N, w, w, C)``.
"""

from __future__ import annotations

import torch
from torch import nn

from medseg_kit.typing import UserError


class ConvEmbedding(nn.Module):
    """Overlapping embedding: for each halving two 3 x 3 convolutions, the second with stride 2.

    Args:
        in_channels: Channels of the image.
        embed_dim: Channels of the tokens; each earlier pair of convolutions has half as many.
        patch_size: Image pixels that the side of a token spans, a power of 2.
        dropout: Dropout before the last layer norm (public code, not in the paper).

    Raises:
        UserError: If ``patch_size`` is not a power of 2, at least 2, or too large for the channels.
    """

    def __init__(
        self, in_channels: int, embed_dim: int, patch_size: int, dropout: float = 0.2
    ) -> None:
        super().__init__()
        halvings = patch_size.bit_length() - 1
        if patch_size < 2 or patch_size != 2**halvings or embed_dim % 2 ** (halvings - 1):
            raise UserError(
                f"patch_size {patch_size} does not suit a convolutional embedding of {embed_dim} "
                "channels; use 2, 4 or 8 and channels that halve as often"
            )
        widths = [embed_dim // 2**step for step in reversed(range(halvings))]
        inputs = [in_channels, *widths[:-1]]
        self.pairs = nn.ModuleList(_conv_pair(*sizes) for sizes in zip(inputs, widths))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Embed ``(B, in_channels, H, W)`` as tokens ``(B, H / p, W / p, embed_dim)``."""
        maps = image
        tokens = image
        for step, (pair, norm) in enumerate(zip(self.pairs, self.norms)):
            tokens = pair(maps).permute(0, 2, 3, 1)
            last = step == len(self.pairs) - 1
            tokens = norm(self.dropout(tokens) if last else tokens)
            maps = tokens.permute(0, 3, 1, 2)
        return tokens


class TokenConv(nn.Conv2d):
    """Square convolution of tokens ``(B, H, W, C)`` that keeps their height and width."""

    def __init__(
        self, in_channels: int, out_channels: int, size: int, *, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__(
            in_channels, out_channels, size, padding=size // 2, groups=groups, bias=bias
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens ``(B, H, W, out_channels)``."""
        return super().forward(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvProjection(nn.Module):
    """Query, key and value by three depthwise convolutions inside the window, layer norm each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(TokenConv(dim, dim, 3, groups=dim, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))

    def forward(self, windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Project windows ``(N, w, w, C)`` to three tensors of the same shape."""
        return tuple(norm(conv(windows)) for conv, norm in zip(self.convs, self.norms))


class CvtProjection(nn.Module):
    """Projection of CvT: depthwise convolution, batch norm, then a linear layer, for each of three.

    Wu et al., "CvT", ICCV 2021 (https://arxiv.org/abs/2103.15808).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(TokenConv(dim, dim, 3, groups=dim, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in range(3))
        self.linears = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))

    def forward(self, windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Project windows ``(N, w, w, C)`` to three tensors of the same shape."""
        projected = []
        for conv, norm, linear in zip(self.convs, self.norms, self.linears):
            normalised = norm(conv(windows).permute(0, 3, 1, 2))
            projected.append(linear(normalised.permute(0, 2, 3, 1)))
        return tuple(projected)


class ConvOutput(nn.Sequential):
    """Depthwise convolution inside the window and GELU, in place of a linear output layer."""

    def __init__(self, dim: int) -> None:
        super().__init__(TokenConv(dim, dim, 3, groups=dim, bias=False), nn.GELU())


class ConvUpsample(nn.Module):
    """Layer norm, then a transposed convolution that doubles the side and halves the channels."""

    def __init__(self, dim: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Up-sample tokens ``(B, H, W, C)`` to ``(B, 2 * H, 2 * W, C / 2)``."""
        maps = self.conv(self.norm(tokens).permute(0, 3, 1, 2))
        upsampled: torch.Tensor = self.dropout(nn.functional.gelu(maps))
        return upsampled.permute(0, 2, 3, 1)


class ConvFusion(nn.Module):
    """Skip connection: two 3 x 3 convolutions with GELU over up-sampled and skipped tokens."""

    def __init__(self, dim: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            TokenConv(2 * dim, dim, 3), nn.GELU(), TokenConv(dim, dim, 3), nn.GELU()
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Return tokens ``(B, H, W, dim)`` of two such maps."""
        fused: torch.Tensor = self.dropout(self.layers(torch.cat([tokens, skip], dim=-1)))
        return fused


def _conv_pair(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.GELU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, stride=2, padding=1),
        nn.GELU(),
    )
