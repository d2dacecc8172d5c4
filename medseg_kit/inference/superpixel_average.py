"""A one-shot answer averaged over superpixels of the query, as training draws its organs from them.

Ours: features have an eighth of a slice's resolution, and their borders spill over; the pieces of
the query have borders of their own, and finding them takes no label.
"""

from __future__ import annotations

import numpy as np
import torch

from medseg_kit.data.superpixels import LEVELS, Superpixels


def average_over_superpixels(
    logits: torch.Tensor, slices: torch.Tensor, *, min_size: int, limits: tuple[float, float]
) -> torch.Tensor:
    """Return logits ``(N, C, H, W)`` that are constant within each superpixel of a slice: its mean.

    Args:
        logits: ``(N, C, H, W)``.
        slices: ``(N, channels, H, W)``; the first channel is cut up, on the CPU.
        min_size: Smallest superpixel in pixels.
        limits: Lowest and highest value of the volume, which are 0 and 255 when it is cut up. If
            they are the same, the logits are returned as they are.
    """
    low, high = limits
    if not high > low:
        return logits
    planes = (slices[:, 0].double().cpu().numpy() - low) / (high - low) * LEVELS
    settings = Superpixels(min_size=min_size)
    first = 0
    numbers = np.empty(planes.shape, np.int64)
    for index, plane in enumerate(planes):
        numbers[index] = first + settings.pieces(plane)
        first = 1 + int(numbers[index].max())
    which = torch.from_numpy(numbers).flatten().to(logits.device)
    values = logits.float().movedim(1, -1).flatten(0, 2)
    sums = values.new_zeros(first, logits.shape[1]).index_add_(0, which, values)
    sizes = torch.bincount(which, minlength=first)
    means = sums / sizes[:, None]
    return means[which].reshape(*numbers.shape, -1).movedim(-1, 1)
