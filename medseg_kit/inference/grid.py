"""The network's grid and the file's grid of one volume, computed as MONAI computes them.

`Orientationd` and `Spacingd` are repeated here step by step (MONAI 1.6), so that the fast route
samples the same places with the same arithmetic and `Invertd` can be repeated without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from monai.data.utils import affine_to_spacing, compute_shape_offset, zoom_affine
from monai.networks.utils import to_norm_affine
from torch.nn import functional

from medseg_kit.transforms.pipelines import AXIS_NAMES

# MONAI's own tolerance (monai.transforms.spatial.functional.AFFINE_TOL).
_AFFINE_TOLERANCE = 1e-3
# Displacement in voxels, over the whole volume, that off-diagonal parts may cause unnoticed.
_DIAGONAL_TOLERANCE = 1e-5
_SLAB_VOXELS = 1 << 20

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Grid:
    """How a network's grid lies in the grid of a file.

    The oriented grid between both has the file's voxels in the network's axis order.

    Attributes:
        stored_shape: Voxels of the file.
        order: Axis ``j`` of the oriented grid is axis ``order[j]`` of the file.
        flipped: Whether an axis of the file runs backwards in the oriented grid.
        shape: Voxels of the network's grid.
        affine: ``(4, 4)`` of the network's grid, RAS, mm.
        forward: ``(4, 4)`` from network voxels to oriented voxels; None if they are the same.
        backward: ``(4, 4)`` from oriented voxels to network voxels; None if they are the same.
    """

    stored_shape: Shape
    order: Shape
    flipped: tuple[bool, bool, bool]
    shape: Shape
    affine: np.ndarray
    forward: np.ndarray | None
    backward: np.ndarray | None

    @property
    def oriented_shape(self) -> Shape:
        """Voxels of the oriented grid."""
        first, second, third = (self.stored_shape[axis] for axis in self.order)
        return first, second, third

    @property
    def is_diagonal(self) -> bool:
        """Whether each oriented axis depends on one network axis only (rounding left aside)."""
        if self.backward is None:
            return True
        matrix = self.backward[:3, :3]
        other = np.abs(matrix - np.diag(np.diag(matrix)))
        return bool((other @ np.asarray(self.oriented_shape)).max() < _DIAGONAL_TOLERANCE)

    def orient(self, stored: torch.Tensor) -> torch.Tensor:
        """Return a volume ``(H, W, D)`` of the file in the oriented axis order."""
        axes = [axis for axis in range(3) if self.flipped[axis]]
        return (stored.flip(axes) if axes else stored).permute(self.order)

    def restore(self, oriented: torch.Tensor) -> torch.Tensor:
        """Return a volume of the oriented grid in the file's axis order."""
        stored = oriented.permute([self.order.index(axis) for axis in range(3)])
        axes = [axis for axis in range(3) if self.flipped[axis]]
        return stored.flip(axes) if axes else stored


def make_grid(
    stored_shape: Sequence[int],
    affine: np.ndarray,
    *,
    orientation: str | None,
    spacing: Sequence[float] | None,
) -> Grid:
    """Return the network's grid for a file.

    Args:
        stored_shape: Voxels of the file.
        affine: ``(4, 4)`` of the file, RAS, mm.
        orientation: Axis codes of the network's grid; the file's own if None.
        spacing: Voxel size of the network's grid in mm; the file's own if None.
    """
    shape = np.asarray(stored_shape)
    turn = np.array([[0, 1], [1, 1], [2, 1]])
    if orientation is not None:
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(affine),
            nib.orientations.axcodes2ornt(orientation, labels=AXIS_NAMES),
        ).astype(int)
    order = np.argsort(turn[:, 0])
    oriented_affine = affine @ nib.orientations.inv_ornt_aff(turn, shape)
    oriented_shape = shape[order]
    forward = backward = None
    network_shape, network_affine = oriented_shape, oriented_affine
    if spacing is not None:
        target, size = _resampled(oriented_affine, oriented_shape, spacing)
        forward = sampling_matrix(oriented_affine, target, oriented_shape, size)
        if forward is not None:
            network_shape, network_affine = size, oriented_affine @ forward
            backward = sampling_matrix(network_affine, oriented_affine, size, oriented_shape)
    return Grid(
        stored_shape=_shape(shape),
        order=_shape(order),
        flipped=(bool(turn[0, 1] < 0), bool(turn[1, 1] < 0), bool(turn[2, 1] < 0)),
        shape=_shape(network_shape),
        affine=network_affine,
        forward=forward,
        backward=backward,
    )


def _resampled(
    affine: np.ndarray, shape: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return affine and shape after `Spacing`; a spacing that is met within 1e-3 mm is kept."""
    wanted = np.asarray(spacing, dtype=np.float64)
    present = affine_to_spacing(affine, 3, np.float64)
    wanted = np.where(np.abs(present - wanted) <= _AFFINE_TOLERANCE, present, wanted)
    target = zoom_affine(affine, wanted, diagonal=False)
    size, offset = compute_shape_offset(shape, affine, target)
    target[:3, 3] = offset[:3]
    return target, np.asarray(size).astype(int)


def sampling_matrix(
    source: np.ndarray, target: np.ndarray, source_shape: np.ndarray, target_shape: np.ndarray
) -> np.ndarray | None:
    """Return the matrix from target voxels to source voxels; None where MONAI does not resample.

    Args:
        source: ``(4, 4)`` affine of the grid to sample from.
        target: ``(4, 4)`` affine of the grid to sample at.
        source_shape: Voxels to sample from.
        target_shape: Voxels to sample at.
    """
    matrix = np.linalg.solve(source, target)
    same = np.allclose(source, target, atol=_AFFINE_TOLERANCE) or np.allclose(
        matrix, np.eye(4), atol=_AFFINE_TOLERANCE
    )
    return None if same and np.array_equal(source_shape, target_shape) else matrix


def resample(image: torch.Tensor, matrix: np.ndarray, size: Shape) -> torch.Tensor:
    """Return a volume sampled linearly at another grid, with MONAI's arithmetic (float64).

    Args:
        image: ``(H, W, D)``, any real type.
        matrix: ``(4, 4)`` from voxels of the result to voxels of ``image``.
        size: Shape of the result.

    Returns:
        ``size``, float32; beyond the image its border is repeated.
    """
    source = image.to(torch.float64)[None, None]
    theta = _theta(matrix, tuple(image.shape), size, image.device)
    result = torch.empty(size, dtype=torch.float32, device=image.device)
    planes = max(_SLAB_VOXELS // (size[1] * size[2]), 1)
    for first in range(0, size[0], planes):
        last = min(first + planes, size[0])
        points = _affine_grid(theta, size, first, last)
        result[first:last] = functional.grid_sample(
            source, points, mode="bilinear", padding_mode="border", align_corners=False
        )[0, 0]
    return result


def _theta(
    matrix: np.ndarray, source_shape: Sequence[int], size: Shape, device: torch.device
) -> torch.Tensor:
    """Return the normalised ``(3, 4)`` matrix of `monai.networks.layers.AffineTransform`."""
    theta = to_norm_affine(
        affine=torch.as_tensor(matrix, dtype=torch.float64)[None],
        src_size=source_shape,
        dst_size=size,
        align_corners=False,
    )[0]
    reverse = [2, 1, 0, 3]
    return theta[reverse][:, reverse][:3].to(device)


def _affine_grid(theta: torch.Tensor, size: Shape, first: int, last: int) -> torch.Tensor:
    """Return planes ``first`` to ``last`` of `torch.nn.functional.affine_grid`, bit for bit."""
    axes = [
        torch.linspace(-1, 1, side, dtype=theta.dtype, device=theta.device) * (side - 1) / side
        if side > 1
        else torch.zeros(1, dtype=theta.dtype, device=theta.device)
        for side in size
    ]
    base = torch.ones(last - first, size[1], size[2], 4, dtype=theta.dtype, device=theta.device)
    base[..., 0] = axes[2]
    base[..., 1] = axes[1][:, None]
    base[..., 2] = axes[0][first:last, None, None]
    points = base.view(1, -1, 4).bmm(theta.T[None])
    return points.view(1, last - first, size[1], size[2], 3)


def _shape(values: np.ndarray) -> Shape:
    first, second, third = (int(value) for value in values)
    return first, second, third
