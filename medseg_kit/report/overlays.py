"""Overlap pictures in SegViz's colours: ground truth only red, prediction only green, both yellow.

The figure's text and caption in the SegViz paper disagree; these are the colours of the caption.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from matplotlib.image import imsave
from skimage.transform import resize

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

REFERENCE_ONLY, PRED_ONLY, BOTH = (230, 30, 40), (30, 190, 70), (255, 215, 0)
OPACITY = 0.6
_THICK = 2.0  # so many times as thick as their pixels slices are shown as they were acquired


def overlap_image(
    image: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    pred: npt.NDArray[Any],
    *,
    label: int | None = None,
    affine: npt.NDArray[np.float64] | None = None,
    window: Sequence[float] | None = None,
    num_pixels: int = 320,
) -> bytes:
    """Return a PNG of the slice with most ground truth: grey image, coloured overlap.

    A volume with an affine is turned to radiological view first: anterior (else superior) up, the
    patient's right on the left. See `shown_slices`.

    Args:
        image: Intensities, shape (H, W[, D]).
        reference: Ground-truth label map or mask, same shape.
        pred: Predicted label map or mask, same shape.
        label: Value to compare; None compares all values (voxels of two different labels count as
            ground truth only).
        affine: Voxel indices to mm, (4, 4); None takes the last axis as the slice axis and square
            voxels.
        window: Intensities drawn black and white; the 1st and 99.5th percentile of the slice if
            None.
        num_pixels: Longer side of the picture.

    Raises:
        ValueError: If the shapes differ or are neither 2-D nor 3-D.
    """
    shapes = {np.shape(array) for array in (image, reference, pred)}
    if len(shapes) != 1 or image.ndim not in (2, 3):
        raise ValueError(f"image, reference and pred must share one 2-D or 3-D shape, got {shapes}")
    arrays = [np.asarray(image, dtype=float), *_masks(reference, pred, label)]
    if image.ndim == 3:
        truth = arrays[1] + arrays[3]
        foreground = truth if np.any(truth) else arrays[2]
        arrays, voxel = shown_slices(arrays, affine, foreground=foreground)
    else:
        voxel = (1.0, 1.0)
    scale = num_pixels / max(arrays[0].shape[0] * voxel[0], arrays[0].shape[1] * voxel[1])
    size = tuple(max(1, round(n * v * scale)) for n, v in zip(arrays[0].shape, voxel, strict=True))
    grey = resize(to_unit(arrays[0], window), size, order=1)
    # shape (3, H, W): reference only, prediction only, both
    overlap = [resize(array, size, order=0) > 0.5 for array in arrays[1:]]
    buffer = io.BytesIO()
    imsave(buffer, blend(grey, *overlap), format="png")
    return buffer.getvalue()


def blend(
    grey: npt.NDArray[np.float64],
    reference_only: npt.NDArray[np.bool_],
    pred_only: npt.NDArray[np.bool_],
    both: npt.NDArray[np.bool_],
) -> npt.NDArray[np.uint8]:
    """Return an RGB picture, shape (H, W, 3), of a grey image with three coloured masks.

    Args:
        grey: Brightness in [0, 1], shape (H, W).
        reference_only: Drawn red.
        pred_only: Drawn green.
        both: Drawn yellow.
    """
    picture = np.repeat(grey[..., None] * 255.0, 3, axis=-1)
    for mask, color in ((reference_only, REFERENCE_ONLY), (pred_only, PRED_ONLY), (both, BOTH)):
        picture[mask] = (1 - OPACITY) * picture[mask] + OPACITY * np.array(color)
    return np.round(picture).astype(np.uint8)


def _masks(
    reference: npt.NDArray[Any], pred: npt.NDArray[Any], label: int | None
) -> list[npt.NDArray[np.float64]]:
    if label is not None:
        reference, pred = reference == label, pred == label
    both = (reference > 0) & (reference == pred)
    reference_only = (reference > 0) & ~both
    pred_only = (pred > 0) & ~both & ~reference_only
    return [mask.astype(float) for mask in (reference_only, pred_only, both)]


def shown_slices(
    arrays: Sequence[npt.NDArray[np.float64]],
    affine: npt.NDArray[np.float64] | None,
    *,
    foreground: npt.NDArray[Any],
) -> tuple[list[npt.NDArray[np.float64]], tuple[float, float]]:
    """Return the slice of each volume that has most foreground, and its voxel size.

    Axial, anterior up; of a volume with thick slices one of these, as it was acquired: short-axis
    slices of the heart lie oblique in the body, and across them nothing is to be seen.

    Args:
        arrays: Volumes of one shape (H, W, D), turned to radiological view.
        affine: Voxel indices to mm, (4, 4); None takes the last axis and square voxels.
        foreground: What the slice should show, same shape; the middle slice if it is empty.

    Returns:
        One (rows, columns) slice a volume, and the size of a voxel (row, column) in mm.
    """
    arrays = [*arrays, np.asarray(foreground, dtype=float)]
    zooms: tuple[float, ...] = (1.0, 1.0, 1.0)
    axis = 2
    if affine is not None:
        volumes = [nib.as_closest_canonical(nib.Nifti1Image(array, affine)) for array in arrays]
        arrays = [volume.get_fdata() for volume in volumes]
        zooms = tuple(float(zoom) for zoom in volumes[0].header.get_zooms())
        if max(zooms) > _THICK * sorted(zooms)[1]:
            axis = int(np.argmax(zooms))
    columns, rows = (other for other in range(3) if other != axis)
    shown = arrays[-1].sum(axis=(columns, rows))
    index = int(np.argmax(shown)) if np.any(shown) else arrays[0].shape[axis] // 2
    slices = [array.take(index, axis=axis).T[::-1, ::-1] for array in arrays[:-1]]
    return slices, (zooms[rows], zooms[columns])


def to_unit(
    image: npt.NDArray[np.float64], window: Sequence[float] | None
) -> npt.NDArray[np.float64]:
    """Return brightness in [0, 1]: the window, or the 1st to 99.5th percentile of the image."""
    low, high = np.percentile(image, [1, 99.5]) if window is None else window
    return np.clip((image - low) / max(float(high - low), 1e-9), 0, 1)
