"""Writes the point maps of a registered data set as tensors, for training without ITK."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
import torch

from medseg_kit.files import replacing
from medseg_kit.registration.cases import RegistrationCase, RegistrationData
from medseg_kit.registration.job import read_transform
from medseg_kit.registration.mapping import MAPS_NAME
from medseg_kit.registration.volumes import nominal

GRID_POINTS = (12, 12, 8)  # of a B-spline's displacement, along the axes of the fixed file


def write_maps(
    folder: Path, pairs: Sequence[tuple[str, str]], *, data: RegistrationData
) -> Path | None:
    """Write ``maps.pt`` for `RegistrationMaps` and return it; None without any finished pair.

    An affine becomes a 3 x 4 matrix from voxels of the fixed file to voxels of the moving one; of a
    B-spline composite, the affine that fits best and the rest as displacements on a coarse grid.

    Args:
        folder: Output folder of `medseg register`.
        pairs: Keys (fixed, moving).
        data: The volumes.
    """
    volumes = {case.key: _Volume(case, nominal_spacing=data.nominal_spacing) for case in data.cases}
    keys = list(volumes)
    found: list[dict[str, Any]] = []
    for fixed, moving in pairs:
        transform = read_transform(folder, fixed, moving)
        if transform is not None:
            entry = _map(transform, volumes[fixed], volumes[moving])
            found.append({"pair": [keys.index(fixed), keys.index(moving)], **entry})
    if not found:
        return None
    displaced = any(entry["displacement"] is not None for entry in found)
    zeros = torch.zeros(3, *GRID_POINTS, dtype=torch.float16)
    content = {
        "keys": keys,
        "sizes": torch.tensor([volume.size for volume in volumes.values()]),
        "affines": torch.tensor(np.stack([volume.affine for volume in volumes.values()])),
        "pairs": torch.tensor([entry["pair"] for entry in found]),
        "matrices": torch.stack([entry["matrix"] for entry in found]),
        "displacements": torch.stack([_or(entry["displacement"], zeros) for entry in found])
        if displaced
        else None,
        "displacement_steps": torch.stack([entry["steps"] for entry in found]),
    }
    path = folder / MAPS_NAME
    with replacing(path) as file:
        torch.save(content, file)
    return path


class _Volume:
    """Size, RAS affine of the header, and the geometry that registration used."""

    def __init__(self, case: RegistrationCase, *, nominal_spacing: bool) -> None:
        header = nib.nifti1.Nifti1Image.from_filename(case.image)
        self.size = [int(side) for side in header.shape[:3]]
        self.affine = np.asarray(header.affine, dtype=np.float64)
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(case.image))
        reader.ReadImageInformation()
        spacing = nominal(tuple(self.size)) if nominal_spacing else reader.GetSpacing()
        direction = np.array(reader.GetDirection()).reshape(3, 3)
        self.origin = np.array(reader.GetOrigin())
        self.to_physical = direction @ np.diag(spacing)

    def physical(self, voxels: np.ndarray) -> np.ndarray:
        """Return physical points ``(N, 3)`` of voxel indices ``(N, 3)``."""
        points: np.ndarray = voxels @ self.to_physical.T + self.origin
        return points

    def voxels(self, points: np.ndarray) -> np.ndarray:
        """Return voxel indices ``(N, 3)`` of physical points ``(N, 3)``."""
        voxels: np.ndarray = np.linalg.solve(self.to_physical, (points - self.origin).T).T
        return voxels


def _map(transform: SimpleITK.Transform, fixed: _Volume, moving: _Volume) -> dict[str, Any]:
    """Return the matrix, and what it leaves over, of one pair."""
    axes = [
        np.linspace(0, side - 1, count) for side, count in zip(fixed.size, GRID_POINTS, strict=True)
    ]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    points = [transform.TransformPoint(point) for point in fixed.physical(grid).tolist()]
    mapped = moving.voxels(np.array(points))
    design = np.concatenate([grid, np.ones((len(grid), 1))], axis=1)
    matrix = np.linalg.lstsq(design, mapped, rcond=None)[0].T
    rest = (mapped - design @ matrix.T).T.reshape(3, *GRID_POINTS)
    steps = [(side - 1) / (count - 1) for side, count in zip(fixed.size, GRID_POINTS, strict=True)]
    is_affine = float(np.abs(rest).max()) < 1e-3
    return {
        "matrix": torch.tensor(matrix, dtype=torch.float32),
        "displacement": None if is_affine else torch.tensor(rest, dtype=torch.float16),
        "steps": torch.tensor(steps, dtype=torch.float32),
    }


def _or(tensor: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    return other if tensor is None else tensor
