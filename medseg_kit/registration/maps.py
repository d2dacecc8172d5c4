"""Writes the point maps of a registered data set as tensors, for training without ITK."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
import torch

from medseg_kit.files import replacing
from medseg_kit.registration.cases import Pair, RegistrationCase
from medseg_kit.registration.mapping import MAPS_NAME
from medseg_kit.registration.store import PairStore

GRID_POINTS = (20, 20, 12)  # of a B-spline's displacement, along the axes of the fixed file
_LINEAR = 1e-3  # voxels; less than this is rounding


def write_maps(store: PairStore, cases: Sequence[RegistrationCase]) -> Path | None:
    """Write ``maps.pt`` for `RegistrationMaps` and return it; None without any registered pair.

    An affine becomes a 3 x 4 matrix from voxels of the fixed file to voxels of the moving one; of a
    B-spline composite, the affine that fits best and the rest as displacements on a coarse grid.

    Args:
        store: The registered pairs; all that still hold are written, also those of earlier runs.
        cases: Volumes.
    """
    pairs = ((fixed, moving) for fixed in cases for moving in cases if fixed.matches(moving))
    volumes: dict[str, _Volume] = {}  # of registered pairs alone: others may not be readable
    found = list(_entries(store, pairs, volumes))
    if not found:
        return None
    keys = list(volumes)
    zeros = torch.zeros(3, *GRID_POINTS, dtype=torch.float16)
    rests = [entry["displacement"] for entry in found]
    content = {
        "keys": keys,
        "sizes": torch.tensor([volume.size for volume in volumes.values()]),
        "affines": torch.tensor(np.stack([volume.affine for volume in volumes.values()])),
        "pairs": torch.tensor([[keys.index(key) for key in entry["pair"]] for entry in found]),
        "matrices": torch.stack([entry["matrix"] for entry in found]),
        "displacements": torch.stack([zeros if rest is None else rest for rest in rests])
        if any(rest is not None for rest in rests)
        else None,
        "displacement_steps": torch.stack([entry["steps"] for entry in found]),
    }
    path = store.folder / MAPS_NAME
    with replacing(path) as file:
        torch.save(content, file)
    return path


class _Volume:
    """Size, RAS affine of the header, and the geometry that registration used."""

    def __init__(self, case: RegistrationCase) -> None:
        header = nib.nifti1.Nifti1Image.from_filename(case.image)
        self.size = [int(side) for side in header.shape[:3]]
        self.affine = np.asarray(header.affine, dtype=np.float64)
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(case.image))
        reader.ReadImageInformation()
        direction = np.array(reader.GetDirection()).reshape(3, 3)
        self.origin = np.array(reader.GetOrigin())
        self.to_physical = direction @ np.diag(case.spacing or reader.GetSpacing())

    def physical(self, voxels: np.ndarray) -> np.ndarray:
        """Return physical points ``(N, 3)`` of voxel indices ``(N, 3)``."""
        return np.asarray(voxels @ self.to_physical.T + self.origin)

    def voxels(self, points: np.ndarray) -> np.ndarray:
        """Return voxel indices ``(N, 3)`` of physical points ``(N, 3)``."""
        return np.asarray(np.linalg.solve(self.to_physical, (points - self.origin).T).T)


def _entries(
    store: PairStore, pairs: Iterable[Pair], volumes: dict[str, _Volume]
) -> Iterable[dict[str, Any]]:
    for fixed, moving in pairs:
        transform = store.transform(fixed, moving)
        if transform is not None:
            for case in (fixed, moving):
                if case.key not in volumes:
                    volumes[case.key] = _Volume(case)
            entry = _map(transform, volumes[fixed.key], volumes[moving.key])
            yield {"pair": (fixed.key, moving.key), **entry}


def _map(transform: SimpleITK.Transform, fixed: _Volume, moving: _Volume) -> dict[str, Any]:
    """Return the matrix, and what it leaves over, of one pair."""
    counts = (2, 2, 2) if transform.IsLinear() else GRID_POINTS
    axes = [np.linspace(0, side - 1, count) for side, count in zip(fixed.size, counts, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    points = [transform.TransformPoint(point) for point in fixed.physical(grid).tolist()]
    mapped = moving.voxels(np.array(points))
    design = np.concatenate([grid, np.ones((len(grid), 1))], axis=1)
    matrix = np.linalg.lstsq(design, mapped, rcond=None)[0].T
    rest = (mapped - design @ matrix.T).T.reshape(3, *counts)
    bends = float(np.abs(rest).max()) > _LINEAR
    steps = [(side - 1) / (n - 1) for side, n in zip(fixed.size, GRID_POINTS, strict=True)]
    return {
        "matrix": torch.tensor(matrix, dtype=torch.float32),
        "displacement": torch.tensor(rest, dtype=torch.float16) if bends else None,
        "steps": torch.tensor(steps, dtype=torch.float32),
    }
