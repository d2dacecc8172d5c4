"""The voxel grid that a network sees, in terms of the grid of the file."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch

from medseg_kit.transforms.planes import across, single_slice, through_plane


@dataclass(frozen=True)
class Grid:
    """One volume as the network's pipeline orients it.

    Attributes:
        size: Voxels an axis, ``(3,)`` int64.
        slice_axis: Axis across the slices.
        to_file: Voxel of this grid to voxel of the file, ``(3, 4)``.
        from_file: The inverse.
    """

    size: torch.Tensor
    slice_axis: int
    to_file: torch.Tensor
    from_file: torch.Tensor


def file_grid() -> Grid:
    """Return the grid of a volume that nothing is known about; no point lies in it."""
    unit = torch.eye(3, 4)
    return Grid(torch.zeros(3, dtype=torch.int64), 2, unit, unit)


def network_grid(
    size: torch.Tensor,
    affine: torch.Tensor,
    orientation: str | None,
    direction: str | None = None,
) -> Grid:
    """Return the grid of a volume that is turned to an orientation, as MONAI's transform does it.

    Args:
        size: Voxels along the axes of the file, ``(3,)``.
        affine: Of the file, voxel to RAS millimetres, ``(4, 4)``.
        orientation: Axis codes such as "RAS"; the file's own if None.
        direction: Direction of the body across which slices are cut, see `slicing_axis`; as the
            volume was acquired if None.
    """
    shape = [int(side) for side in size]
    spacing = torch.linalg.vector_norm(affine[:3, :3], dim=0).tolist()
    if direction is None or single_slice(shape) is not None:
        stored_axis = through_plane(shape, spacing)
    else:
        stored_axis = across(affine.numpy(), direction)
    if orientation is None:
        return Grid(size, stored_axis, torch.eye(3, 4), torch.eye(3, 4))
    start = nib.orientations.io_orientation(affine.numpy())
    turn = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(orientation))
    to_file = nib.orientations.inv_ornt_aff(turn, shape)
    order = turn[:, 0].astype(int)
    turned = np.empty(3, dtype=np.int64)
    turned[order] = shape
    matrices = [
        torch.tensor(matrix[:3], dtype=torch.float32)
        for matrix in (to_file, np.linalg.inv(to_file))
    ]
    return Grid(torch.from_numpy(turned), int(order[stored_axis]), matrices[0], matrices[1])
