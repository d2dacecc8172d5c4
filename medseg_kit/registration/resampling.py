"""Warping with a transform A(fixed, moving), and how well two volumes agree."""

from __future__ import annotations

import numpy as np
import SimpleITK

BINS = 32
HALF = 0.5


def warp_image(
    moving: SimpleITK.Image, reference: SimpleITK.Image, transform: SimpleITK.Transform
) -> SimpleITK.Image:
    """Return the moving volume on the reference's grid; outside it has its smallest value."""
    smallest = float(SimpleITK.GetArrayFromImage(moving).min())
    return SimpleITK.Resample(moving, reference, transform, SimpleITK.sitkLinear, smallest)


def warp_label(
    moving: SimpleITK.Image, reference: SimpleITK.Image, transform: SimpleITK.Transform
) -> SimpleITK.Image:
    """Return the moving label map on the reference's grid; no new value appears."""
    return SimpleITK.Resample(
        moving, reference, transform, SimpleITK.sitkNearestNeighbor, 0, SimpleITK.sitkUInt8
    )


def mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mutual information of two images in [0, 1], divided by the first one's entropy.

    Args:
        first: Any shape.
        second: The same number of values.

    Returns:
        0 (independent, or the first one constant) to 1 (the second tells the first).
    """
    counts, _, _ = np.histogram2d(first.ravel(), second.ravel(), BINS, [[0, 1], [0, 1]])
    joint = counts / max(counts.sum(), 1)
    one, other = joint.sum(1), joint.sum(0)
    held = joint > 0
    information = (joint[held] * np.log(joint[held] / np.outer(one, other)[held])).sum()
    entropy = -(one[one > 0] * np.log(one[one > 0])).sum()
    return float(information / entropy) if entropy > 0 else 0.0


def round_trip(
    target: SimpleITK.Image,
    other: SimpleITK.Image,
    there: SimpleITK.Transform,
    back: SimpleITK.Transform,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume sent to another's grid and back, and which voxels stayed inside both.

    Args:
        target: Volume v_j.
        other: Volume q.
        there: A(q, j), which resamples j onto q.
        back: A(j, q), which resamples that onto j.

    Returns:
        The volume and a boolean mask, both as arrays of the target's grid.
    """
    returned = warp_image(warp_image(target, other, there), target, back)
    inside = SimpleITK.Cast(target * 0 + 1, SimpleITK.sitkFloat32)
    inside = SimpleITK.Resample(inside, other, there, SimpleITK.sitkLinear, 0.0)
    inside = SimpleITK.Resample(inside, target, back, SimpleITK.sitkLinear, 0.0)
    return SimpleITK.GetArrayFromImage(returned), SimpleITK.GetArrayFromImage(inside) > HALF
