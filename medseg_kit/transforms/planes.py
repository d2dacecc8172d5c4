"""From volumes to slices and back: which axis to slice along, and how slices are resized.

Training and inference both go through here, so that a network sees the same slices in both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch.nn import functional

logger = logging.getLogger(__name__)

# Directions of the body across which slices can be asked for, as axes of RAS millimetres.
DIRECTIONS = {"R": 0, "A": 1, "S": 2}
# Spacings that differ by less than this share count as a tie.
_TIE = 1e-3
# Pixel centres stay in place (align_corners=False) in all of them, so images and labels agree.
INTERPOLATIONS = {"linear": "bilinear", "nearest": "nearest-exact"}


def through_plane(shape: Sequence[int], spacing: Sequence[float]) -> int:
    """Return the axis across the slices: largest spacing, then fewest voxels, then the last.

    An axis of one voxel is that axis whatever its spacing: the file holds a single slice.

    Args:
        shape: Voxels an axis.
        spacing: Millimetres a voxel and axis.

    >>> through_plane((256, 256, 10), (1.4, 1.4, 10.0))
    2
    >>> through_plane((12, 256, 256), (1.0, 1.0, 1.0))
    0
    >>> through_plane((64, 64, 64), (1.0, 1.0, 1.0))
    2
    >>> through_plane((216, 256, 1), (1.5, 1.5, 1.0))
    2
    """
    only = single_slice(shape)
    if only is not None:
        return only
    largest = max(spacing)
    tied = [axis for axis, size in enumerate(spacing) if size >= largest * (1 - _TIE)]
    return min(tied, key=lambda axis: (shape[axis], -axis))


def single_slice(shape: Sequence[int]) -> int | None:
    """Return the axis of one voxel of a volume that holds a single slice; None if it holds more.

    Args:
        shape: Voxels an axis.
    """
    single = [axis for axis, size in enumerate(shape) if size == 1]
    return single[-1] if single else None


def slicing_axis(
    volume: torch.Tensor, slice_axis: int | None = None, *, direction: str | None = None
) -> int:
    """Return the spatial axis of a volume along which its file was acquired slice by slice.

    Flips and exchanged axes since the file was read are followed.

    Args:
        volume: ``(..., H, W, D)``; a `MetaTensor` tells the spacing and what was done since the
            file was read.
        slice_axis: Stored axis of the file to slice along; chosen by `through_plane` if None.
        direction: "R", "A" or "S": slice across that direction of the body instead, whatever the
            spacing: "S" for axial slices; a single slice stays one. A plain tensor is taken to lie
            in RAS.
    """
    shape = tuple(volume.shape[-3:])
    only = single_slice(shape)
    if direction is not None and only is not None:
        return only
    if not isinstance(volume, MetaTensor):
        if direction is not None:
            return DIRECTIONS[direction]
        axis = slice_axis if slice_axis is not None else through_plane(shape, [1] * 3)
        logger.debug("slices along axis %d of a volume without spacing", axis)
        return axis
    if direction is not None:
        return across(volume.affine, direction)
    current = _matrix(volume.affine)
    directions = current / np.linalg.norm(current, axis=0)
    stored = _matrix(volume.meta.get("original_affine", volume.affine))
    stored_shape = np.asarray(volume.meta.get("spatial_shape", shape)).reshape(-1, 3)[0]
    spacing = np.linalg.norm(stored, axis=0)
    chosen = slice_axis
    if chosen is None:
        chosen = through_plane([int(side) for side in stored_shape], spacing.tolist())
    axis = int(np.abs(directions.T @ stored[:, chosen]).argmax())
    unusual = slice_axis is not None or chosen != len(stored_shape) - 1
    others = np.delete(np.arange(3), chosen)
    thick = (spacing[chosen] > 1.5 * spacing[others]).all()
    if slice_axis is None and thick and (stored_shape[chosen] > stored_shape[others]).all():
        logger.warning(
            "the thickest voxels (%.3g mm) lie along the axis with the most of them (%d, the others"
            " %s): if slices come out wrong, mend the spacing in the file's header",
            spacing[chosen],
            stored_shape[chosen],
            " and ".join(str(side) for side in stored_shape[others]),
        )
    logger.log(
        logging.INFO if unusual else logging.DEBUG,
        "slices along stored axis %d (%s, spacing %.3g mm, %d slices)",
        chosen,
        "as asked" if slice_axis is not None else "through-plane",
        spacing[chosen],
        stored_shape[chosen],
    )
    return axis


def across(affine: Any, direction: str) -> int:
    """Return the axis of a grid that runs along a direction of the body.

    Args:
        affine: Voxel indices to RAS millimetres, ``(4, 4)``, or a batch of which the first counts.
        direction: "R", "A" or "S".
    """
    matrix = _matrix(affine)
    shares = np.abs(matrix / np.linalg.norm(matrix, axis=0))[DIRECTIONS[direction]]
    return int(shares.argmax())


def check_direction(direction: str | None) -> None:
    """Refuse a direction that `slicing_axis` does not know.

    Raises:
        ValueError: Names those that it knows.
    """
    if direction is not None and direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {list(DIRECTIONS)} or None, got {direction!r}")


def resize_slices(
    slices: torch.Tensor, size: Sequence[int], *, interpolation: str = "linear"
) -> torch.Tensor:
    """Return slices resized in plane; those of that size already as they are.

    Args:
        slices: ``(N, C, H, W)``, of a floating type unless ``interpolation`` is "nearest".
        size: New ``(H, W)``.
        interpolation: "linear", or "nearest" for labels, and for images where the papers' code
            takes the nearest pixel. Pixel centres stay in place; that code (`scipy.ndimage.zoom` of
            order 0) aligns the outer pixels instead, so some pixels differ by one.
    """
    if tuple(slices.shape[-2:]) == tuple(size):
        return slices
    return functional.interpolate(slices, list(size), mode=INTERPOLATIONS[interpolation])


def _matrix(affine: Any) -> np.ndarray:
    """Return the 3 x 3 part of an affine, of the first one if there is a batch of them."""
    return np.asarray(affine, dtype=np.float64).reshape(-1, 4, 4)[0, :3, :3]


def voxel_mm(volume: torch.Tensor) -> tuple[float, float, float]:
    """Return the voxel size of a volume's present grid in mm, ones where it is not known.

    Args:
        volume: ``(..., H, W, D)``; a `MetaTensor` tells the spacing.
    """
    if not isinstance(volume, MetaTensor):
        return (1.0, 1.0, 1.0)
    first, second, third = np.linalg.norm(_matrix(volume.affine), axis=0).tolist()
    return (first, second, third)
