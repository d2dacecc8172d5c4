"""A one-shot answer averaged over superpixels of the query, as training draws its organs from them.

Ours: features have an eighth of a slice's resolution, and their borders spill over; the pieces of
the query have borders of their own, and finding them takes no label.
"""

from __future__ import annotations

import joblib
import numpy as np
import torch

from medseg_kit.data.superpixels import LEVELS, Superpixels

_SLICES_A_PROCESS = 8  # fewer are cut sooner than a process takes them over


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
    # the small batches of a CPU are cut here, the large ones of a GPU, which waits, by all cores
    jobs = max(1, min(joblib.cpu_count(), len(planes) // _SLICES_A_PROCESS))
    pieces = joblib.Parallel(n_jobs=jobs)(joblib.delayed(settings.pieces)(p) for p in planes)
    numbers = np.stack(pieces).astype(np.int64)
    counts = numbers.max(axis=(1, 2)) + 1
    numbers += (counts.cumsum() - counts)[:, None, None]
    number_of_pieces = int(counts.sum())
    which = torch.from_numpy(numbers).flatten().to(logits.device)
    values = logits.float().movedim(1, -1).flatten(0, 2)
    sums = values.new_zeros(number_of_pieces, logits.shape[1]).index_add_(0, which, values)
    sizes = torch.bincount(which, minlength=number_of_pieces)
    means = sums / sizes[:, None]
    return means[which].reshape(*numbers.shape, -1).movedim(-1, 1)
