"""Surface distances between two binary masks: HD and HD95 as the published tables print them.

HD95 is medpy's: the 95th percentile of the concatenated directed distances. MONAI's
`HausdorffDistanceMetric` takes the larger of two directed percentiles instead, which gives another
number on the same masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from medseg_kit.metrics.overlap import check_same_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Mask = npt.NDArray[np.bool_]


def union_box(pred: Mask, reference: Mask) -> tuple[slice, ...]:
    """Return the bounding box of both masks together (whole image when both are empty).

    Surfaces and their distances lie inside this box, so cropping to it changes no number, only the
    time.

    Args:
        pred: Boolean mask, shape (H, W[, D]).
        reference: Boolean mask of the same shape.
    """
    box = ndimage.find_objects((pred | reference).view(np.uint8), max_label=1)[0]
    if box is None:
        return tuple(slice(0, size) for size in pred.shape)
    return tuple(box)


def surface(mask: Mask) -> Mask:
    """Return the surface voxels of a mask: the mask without its erosion (face neighbours).

    Voxels at the border of the image count as surface, as in medpy.

    Args:
        mask: Boolean mask, shape (H, W[, D]).
    """
    cross = ndimage.generate_binary_structure(mask.ndim, 1)
    eroded: Mask = ndimage.binary_erosion(mask, structure=cross)
    return mask & ~eroded


def surface_distances(
    pred: Mask, reference: Mask, *, spacing: Sequence[float] | None = None
) -> npt.NDArray[np.float64]:
    """Return both lists of directed surface distances, concatenated.

    Args:
        pred: Boolean mask with at least one voxel, shape (H, W[, D]).
        reference: Boolean mask with at least one voxel, same shape.
        spacing: Voxel size in mm, ordered as the array axes; None measures in voxels.

    Raises:
        ValueError: If the shapes differ or a mask is empty (the caller's empty-mask policy decides
            then).
    """
    check_same_shape(pred, reference)
    if not pred.any() or not reference.any():
        raise ValueError(
            "surface distances need two masks with voxels; "
            "use medseg_kit.metrics.policy.score_masks for empty ones"
        )
    box = union_box(pred, reference)
    pred_surface, reference_surface = surface(pred[box]), surface(reference[box])
    to_reference = ndimage.distance_transform_edt(~reference_surface, sampling=spacing)
    to_pred = ndimage.distance_transform_edt(~pred_surface, sampling=spacing)
    return np.concatenate([to_reference[pred_surface], to_pred[reference_surface]])


def hd95(pred: Mask, reference: Mask, *, spacing: Sequence[float] | None = None) -> float:
    """Return the 95th percentile of the concatenated directed surface distances (medpy's HD95).

    Args:
        pred: Boolean mask with at least one voxel, shape (H, W[, D]).
        reference: Boolean mask with at least one voxel, same shape.
        spacing: Voxel size in mm, ordered as the array axes; None measures in voxels.

    Raises:
        ValueError: If the shapes differ or a mask is empty.

    Example:
        >>> import numpy as np
        >>> pred, reference = np.zeros((2, 8, 8), dtype=bool)
        >>> pred[2, 1] = reference[2, 4] = True
        >>> hd95(pred, reference)
        3.0
        >>> hd95(pred, reference, spacing=(1.0, 0.5))
        1.5
    """
    return hausdorff(pred, reference, spacing=spacing)[1]


def hausdorff(
    pred: Mask, reference: Mask, *, spacing: Sequence[float] | None = None
) -> tuple[float, float]:
    """Return the Hausdorff distance, which is the largest surface distance, and HD95.

    Args:
        pred: Boolean mask with at least one voxel, shape (H, W[, D]).
        reference: Boolean mask with at least one voxel, same shape.
        spacing: Voxel size in mm, ordered as the array axes; None measures in voxels.

    Raises:
        ValueError: If the shapes differ or a mask is empty.
    """
    distances = surface_distances(pred, reference, spacing=spacing)
    return float(distances.max()), float(np.percentile(distances, 95))
