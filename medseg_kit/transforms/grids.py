"""How far two grids of equal size lie apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def shift_in_voxels(shape: Sequence[int], affine: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Return the largest distance between the corners of two grids, in the first one's voxels.

    Args:
        shape: Voxels an axis, of both.
        affine: Voxel index to millimetres, ``(n + 1, n + 1)``.
        other: The same of the other grid.

    >>> shift_in_voxels((2, 2), np.eye(3), [[1, 0, 0.5], [0, 1, 0], [0, 0, 1]])
    0.5
    """
    first, second = np.asarray(affine, np.float64), np.asarray(other, np.float64)
    corners = np.stack(np.meshgrid(*([0, size - 1] for size in shape), indexing="ij"), -1)
    points = np.pad(corners.reshape(-1, len(shape)), ((0, 0), (0, 1)), constant_values=1)
    voxel = np.linalg.norm(first[:-1, :-1], axis=0).min()
    return float(np.abs(points @ (second - first).T).max() / voxel)
