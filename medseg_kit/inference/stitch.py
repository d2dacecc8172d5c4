"""Putting the answers of overlapping windows together."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

logger = logging.getLogger(__name__)

Window = tuple[slice, ...]

# Background logit of voxels that no window has covered; the other classes get 0.
OUTSIDE_LOGIT = 10.0


class Stitch:
    """Sum of the weighted windows, and how much weight each voxel has received.

    Args:
        shape: ``(C, H, W[, D])`` of the stitched volume.
        device: Where the sum is kept.
        channels_last: Keep the classes of a voxel side by side, as the answers do; adding answers
            of another order takes twice as long.
    """

    def __init__(
        self, shape: Sequence[int], device: torch.device, *, channels_last: bool = False
    ) -> None:
        if channels_last:
            self.total = torch.zeros(*shape[1:], shape[0], device=device).movedim(-1, 0)
        else:
            self.total = torch.zeros(*shape, device=device)
        self.weight = torch.zeros(*shape[1:], device=device)

    @classmethod
    def like(cls, answer: torch.Tensor, image: torch.Tensor, device: str) -> Stitch:
        """Return an empty stitch for the answers of a network over ``image``.

        Args:
            answer: First window batch, ``(N, C, *roi)``.
            image: Padded volume ``(1, channels, H, W[, D])``.
            device: ``"auto"`` or the name of a device.
        """
        shape = (answer.shape[1], *image.shape[2:])
        last = answer.dim() == 5 and answer.stride(1) == 1
        if device != "auto":
            return cls(shape, torch.device(device), channels_last=last)
        if image.device.type == "cuda":
            needed = 4 * (shape[0] + 1) * image[0, 0].numel()
            free, _ = torch.cuda.mem_get_info(image.device)
            if needed > free / 2:
                logger.info("stitching on the CPU: %.1f GB do not fit", needed / 1e9)
                return cls(shape, torch.device("cpu"), channels_last=last)
        return cls(shape, image.device, channels_last=last)

    def add(
        self, answer: torch.Tensor, windows: Sequence[Window], weights: torch.Tensor | None
    ) -> None:
        """Add one batch of windows.

        Args:
            answer: ``(N, C, *roi)``.
            windows: Where each window lies.
            weights: Weight of a window's voxels ``(*roi)``; 1 everywhere if None.
        """
        if weights is not None:
            answer = answer.float() * weights
        answer = answer.to(self.total.device)
        for window, part in zip(windows, answer, strict=True):
            channels = (slice(None), *window)
            self.total[channels] += part
            self.weight[window] += 1 if weights is None else weights.to(self.weight.device)

    def to_cpu(self) -> None:
        """Move the sums to the CPU."""
        self.total, self.weight = self.total.cpu(), self.weight.cpu()

    def result(self, *, fill: bool) -> torch.Tensor:
        """Return the weighted mean, ``(1, C, H, W[, D])``.

        Args:
            fill: Make voxels without any window background instead of NaN.
        """
        if fill:
            outside = self.weight == 0
            self.weight.masked_fill_(outside, 1)
            self.total[0].masked_fill_(outside, OUTSIDE_LOGIT)
        self.total /= self.weight
        return self.total.contiguous()[None]
