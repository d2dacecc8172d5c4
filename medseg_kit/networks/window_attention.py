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

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Project windows ``(N, w, w, C)`` to ``(N, w * w, 3, C)``."""
        batch, _, _, dim = windows.shape
        projected: torch.Tensor = self.qkv(windows)
        return projected.view(batch, -1, 3, dim)


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
        projection: Windows ``(N, w, w, C)`` to query, key, value ``(N, w * w, 3, C)``.
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
        if shift:
            tokens = torch.roll(tokens, shifts=(-shift, -shift), dims=(1, 2))
        windows = tokens
        if window < side:
            windows = window_partition(tokens, (window, window))
            windows = windows.view(-1, window, window, dim)
        windows = self._attend(windows, batch)
        if window == side:
            return windows
        tokens = window_reverse(windows, (window, window), [batch, side, side])
        return torch.roll(tokens, shifts=(shift, shift), dims=(1, 2)) if shift else tokens

    def _attend(self, windows: torch.Tensor, batch: int) -> torch.Tensor:
        """Attention of all windows ``(N, w, w, C)``, the windows of an image as further heads."""
        side, heads = self.place.window, self.place.num_heads
        length = side * side
        num_windows = (self.place.resolution // side) ** 2
        projected = self.projection(windows)
        split = projected.view(batch, num_windows, length, 3, heads, -1).permute(3, 0, 1, 4, 2, 5)
        query, key, value = split.reshape(3, batch, num_windows * heads, length, -1).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=self._bias(query))
        attended = attended.view(batch, num_windows, heads, length, -1).transpose(2, 3)
        result: torch.Tensor = self.output(attended.reshape(windows.shape))
        return result

    def _bias(self, query: torch.Tensor) -> torch.Tensor | None:
        """Return what is added to the scores, ``(1, windows * heads, w * w, w * w)``."""
        _, all_heads, length, _ = query.shape
        shape = (all_heads // self.place.num_heads, self.place.num_heads, length, length)
        if self.position is None and self.shift_mask is None:
            return None
        bias: torch.Tensor = query.new_zeros(()) if self.position is None else self.position()
        if self.shift_mask is not None:
            bias = bias + self.shift_mask
        mask: torch.Tensor = bias.expand(shape).reshape(1, all_heads, length, length)
        return mask.to(query.dtype)


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
