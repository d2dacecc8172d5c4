"""Self-attention inside (shifted) windows of a map, with exchangeable projections.

Liu et al., "Swin Transformer", ICCV 2021 (https://arxiv.org/abs/2103.14030). Tokens are kept as
``(B, H, W, C)`` throughout, which is the channels-last memory format of convolutions: no copy is
needed between the two views.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from monai.networks.layers import trunc_normal_
from monai.networks.nets.swin_unetr import compute_mask, window_partition, window_reverse
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class BlockPlace:
    """Where a block stands in the network.

    Attributes:
        dim: Channels of its tokens.
        num_heads: Attention heads.
        resolution: Side of its square token map.
        window: Side of a window, in tokens.
        shift: Cyclic shift of the windows, in tokens; 0 for none.
        drop_path: Probability of skipping the residual branch of a sample.
    """

    dim: int
    num_heads: int
    resolution: int
    window: int
    shift: int
    drop_path: float


class LinearProjection(nn.Module):
    """Query, key and value of each token by one linear layer with bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Project windows ``(N, w, w, C)`` to three tensors of the same shape."""
        projected: torch.Tensor = self.qkv(windows)
        return projected.chunk(3, dim=-1)


class RelativePositionBias(nn.Module):
    """A learnt number for each head and each offset between two tokens of a window."""

    relative_position_index: torch.Tensor

    def __init__(self, window: int, num_heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, num_heads)
        )
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        index = relative_position_index(window)
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self) -> torch.Tensor:
        """Return the bias ``(heads, w * w, w * w)``."""
        bias = self.relative_position_bias_table[self.relative_position_index]
        return bias.permute(2, 0, 1)


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of each window, ``(B, H, W, C)`` to the same shape.

    Args:
        place: Channels, heads, resolution, window and shift.
        projection: Windows ``(N, w, w, C)`` to query, key and value of the same shape.
        output: Windows ``(N, w, w, C)`` after attention to the same shape.
        relative_position: Add a learnt bias for the offset of two tokens.
    """

    shift_mask: torch.Tensor | None

    def __init__(
        self,
        place: BlockPlace,
        projection: nn.Module,
        output: nn.Module,
        *,
        relative_position: bool,
    ) -> None:
        super().__init__()
        self.place = place
        self.projection = projection
        self.output = output
        self.position = (
            RelativePositionBias(place.window, place.num_heads) if relative_position else None
        )
        self.register_buffer("shift_mask", _shift_mask(place), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attend within the windows of ``tokens`` ``(B, H, W, C)``."""
        batch, side, _, dim = tokens.shape
        window, shift = self.place.window, self.place.shift
        if window == side:
            return self._attend(tokens)
        if shift:
            tokens = torch.roll(tokens, shifts=(-shift, -shift), dims=(1, 2))
        windows = window_partition(tokens, (window, window)).view(-1, window, window, dim)
        tokens = window_reverse(self._attend(windows), (window, window), [batch, side, side])
        return torch.roll(tokens, shifts=(shift, shift), dims=(1, 2)) if shift else tokens

    def _attend(self, windows: torch.Tensor) -> torch.Tensor:
        """Attend within each of the windows ``(N, w, w, C)``."""
        query, key, value = (self._split(part) for part in self.projection(windows))
        attended = attend(query, key, value, self._mask())
        result: torch.Tensor = self.output(attended.transpose(1, 2).reshape(windows.shape))
        return result

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        """View ``(N, w, w, C)`` as ``(N, heads, w * w, C / heads)``."""
        count, side, _, dim = tokens.shape
        heads = self.place.num_heads
        return tokens.reshape(count, side * side, heads, dim // heads).transpose(1, 2)

    def _mask(self) -> torch.Tensor | None:
        """Return what is added to the scores, ``(windows or 1, heads or 1, w * w, w * w)``."""
        bias: torch.Tensor | None = None if self.position is None else self.position()[None]
        if self.shift_mask is None or bias is None:
            return bias if self.shift_mask is None else self.shift_mask
        return self.shift_mask + bias


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return attention over the windows of a batch of images.

    The fused kernel gives the same result, but its backward pass on the CPU is slower than plain
    products with a learnt mask (by a third) and in bfloat16 (4 to 8 times; torch 2.13).

    Args:
        query: ``(N, heads, L, channels)``, the windows of an image following each other.
        key: As ``query``.
        value: As ``query``.
        mask: Added to the scores, ``(windows of an image or 1, heads or 1, L, L)``.
    """
    if query.device.type == "cpu" and torch.is_grad_enabled():
        scores: torch.Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if mask is not None:
            count, heads, length, _ = scores.shape
            grouped = scores.view(-1, mask.shape[0], heads, length, length)
            scores = (grouped + mask.to(scores.dtype)).view(count, heads, length, length)
        return scores.softmax(dim=-1) @ value
    if mask is not None:
        mask = mask.to(query.dtype)
        if mask.shape[0] > 1:
            mask = mask.repeat(query.shape[0] // mask.shape[0], 1, 1, 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def relative_position_index(window: int) -> torch.Tensor:
    """Return for each pair of tokens of a window the row of the bias table, ``(w * w, w * w)``."""
    axis = torch.arange(window)
    rows, columns = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
    row_offset = rows[:, None] - rows[None, :] + window - 1
    column_offset = columns[:, None] - columns[None, :] + window - 1
    return row_offset * (2 * window - 1) + column_offset


def _shift_mask(place: BlockPlace) -> torch.Tensor | None:
    """Return 0 or -100 for each window and pair of tokens, ``(windows, 1, w * w, w * w)``."""
    if not place.shift:
        return None
    window, shift = (place.window,) * 2, (place.shift,) * 2
    mask: torch.Tensor = compute_mask((place.resolution,) * 2, window, shift, torch.device("cpu"))
    return mask.unsqueeze(1)
