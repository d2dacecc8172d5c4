"""Slice-wise networks as an inferer: one volume and a 2-D network in, one volume of logits out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch.nn import functional

logger = logging.getLogger(__name__)

Network = Callable[..., torch.Tensor]

# Spacings that differ by less than this share count as a tie.
_TIE = 1e-3


class SliceInferer(Inferer):
    """Runs a 2-D network over the slices of a volume, a whole batch of slices at a time.

    Slices are taken along the axis through which the file was acquired: ``slice_axis`` if given,
    else the stored axis with the largest spacing, on a tie the one with the fewest voxels, then the
    last. The choice is logged. Flips and exchanged axes in the preprocessing are followed, so the
    slices are those of the file also when the volume has been brought to RAS.

    Args:
        slice_axis: Stored axis of the file (0, 1, 2) to slice along; chosen as above if None.
        slice_size: In-plane size ``(H, W)`` that the network wants; slices are resized to it and
            the logits back, both linearly. Their own size if None.
        divisor: Slices are padded at their end to a multiple of this, and the logits cropped.
        sw_batch_size: Slices a batch.

    Raises:
        ValueError: If ``slice_axis`` is not 0, 1 or 2.
    """

    def __init__(
        self,
        *,
        slice_axis: int | None = None,
        slice_size: Sequence[int] | None = None,
        divisor: int = 1,
        sw_batch_size: int = 16,
    ) -> None:
        super().__init__()
        if slice_axis not in (None, 0, 1, 2):
            raise ValueError(f"slice_axis must be 0, 1 or 2 (a stored axis), got {slice_axis}")
        self.slice_axis = slice_axis
        self.slice_size = None if slice_size is None else tuple(slice_size)
        self.divisor = divisor
        self.sw_batch_size = sw_batch_size

    def __call__(
        self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the logits of all slices as one plain tensor ``(B, C, H, W, D)`` float32.

        Args:
            inputs: Volumes ``(B, channels, H, W, D)``; a `MetaTensor` tells the spacing.
            network: Maps slices ``(N, channels, H, W)`` to ``(N, C, H, W)``.
            *args: Passed on to the network.
            **kwargs: Passed on to the network.

        Raises:
            ValueError: If ``inputs`` has not three spatial axes.
        """
        if inputs.dim() != 5:
            raise ValueError(
                f"slices need volumes (B, C, H, W, D), got shape {tuple(inputs.shape)}; "
                "2-D images are (H, W, 1) volumes"
            )
        axis = self._axis(inputs)
        volumes = inputs.as_subclass(torch.Tensor)
        slices = volumes.movedim(2 + axis, 1).flatten(0, 1)
        answers = [
            self._predict(batch, lambda batch: network(batch, *args, **kwargs))
            for batch in slices.split(self.sw_batch_size)
        ]
        stacked = torch.cat(answers).reshape(len(volumes), -1, *answers[0].shape[1:])
        return stacked.movedim(1, 2 + axis)

    def _predict(self, slices: torch.Tensor, network: Network) -> torch.Tensor:
        height, width = slices.shape[2:]
        if self.slice_size is not None and self.slice_size != (height, width):
            slices = _resize(slices, self.slice_size)
        rows, columns = slices.shape[2:]
        slices = functional.pad(slices, (0, -columns % self.divisor, 0, -rows % self.divisor))
        answer: torch.Tensor = network(slices.contiguous()).float()[..., :rows, :columns]
        return answer if (rows, columns) == (height, width) else _resize(answer, (height, width))

    def _axis(self, inputs: torch.Tensor) -> int:
        """Return the spatial axis of ``inputs`` along which to slice."""
        shape = tuple(inputs.shape[2:])
        if not isinstance(inputs, MetaTensor):
            axis = self.slice_axis if self.slice_axis is not None else through_plane(shape, [1] * 3)
            logger.info("slices along axis %d of a volume without spacing", axis)
            return axis
        current = _matrix(inputs.affine)
        stored = _matrix(inputs.meta.get("original_affine", current))
        stored_shape = np.asarray(inputs.meta.get("spatial_shape", shape)).reshape(-1, 3)[0]
        spacing = np.linalg.norm(stored, axis=0)
        chosen = self.slice_axis
        if chosen is None:
            chosen = through_plane([int(side) for side in stored_shape], spacing.tolist())
        directions = current / np.linalg.norm(current, axis=0)
        axis = int(np.abs(directions.T @ stored[:, chosen]).argmax())
        logger.info(
            "slices along stored axis %d (%s, spacing %.3g mm, %d slices)",
            chosen,
            "as asked" if self.slice_axis is not None else "through-plane",
            spacing[chosen],
            stored_shape[chosen],
        )
        return axis


def through_plane(shape: Sequence[int], spacing: Sequence[float]) -> int:
    """Return the axis across the slices: largest spacing, then fewest voxels, then the last.

    Args:
        shape: Voxels an axis.
        spacing: Millimetres a voxel and axis.

    >>> through_plane((256, 256, 10), (1.4, 1.4, 10.0))
    2
    >>> through_plane((12, 256, 256), (1.0, 1.0, 1.0))
    0
    >>> through_plane((64, 64, 64), (1.0, 1.0, 1.0))
    2
    """
    largest = max(spacing)
    tied = [axis for axis, size in enumerate(spacing) if size >= largest * (1 - _TIE)]
    return min(tied, key=lambda axis: (shape[axis], -axis))


def _matrix(affine: Any) -> np.ndarray:
    """Return the 3 x 3 part of an affine, of the first one if there is a batch of them."""
    return np.asarray(affine, dtype=np.float64).reshape(-1, 4, 4)[0, :3, :3]


def _resize(slices: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return functional.interpolate(slices, list(size), mode="bilinear", align_corners=False)
