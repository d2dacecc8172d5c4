"""Volumes that are folders: a DICOM series, and CHAOS's stack of PNG labels that belongs to one.

CHAOS (Kavur et al. 2021, https://doi.org/10.1016/j.media.2020.101950) stores an MR scan as
``SEQUENCE/DICOM_anon[/PHASE]/*.dcm`` and its label as ``SEQUENCE/Ground/*.png``, slice by slice in
the order of the file names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

DICOM_FOLDER = "DICOM_anon"
# ITK's world axes are left, posterior, superior; NIfTI's are right, anterior, superior.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Grey values of the PNG files and the organs 1 liver, 2 right kidney, 3 left kidney, 4 spleen.
_GREYS = ((55, 70), (110, 135), (175, 200), (240, 255))
_NO_ORGAN = 5  # a grey value that is in no range and no organ's label value

Array = NDArray[Any]


def read_stack(folder: Path) -> tuple[Array, NDArray[np.float64]]:
    """Read a folder of DICOM or PNG files as one volume.

    Args:
        folder: A DICOM series (one), or CHAOS's ``Ground``.

    Returns:
        Array ``(columns, rows, slices)`` and affine from voxel indices to RAS+ millimetres. A
        label stack has the affine and the slice order of its DICOM series.

    Raises:
        ValueError: If the folder holds no series or several, or a stack does not fit its series.
    """
    pictures = sorted(folder.glob("*.png"))
    if not pictures:
        files = _series_files(folder)
        image = SimpleITK.ReadImage([str(file) for file in files])
        return SimpleITK.GetArrayFromImage(image).T, _affine(image)
    files = _series_files(_series_of(folder))
    if len(files) != len(pictures):
        raise ValueError(f"{len(pictures)} PNG files for a series of {len(files)} slices")
    by_name = dict(zip(sorted(files), pictures, strict=True))
    slices = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(by_name[f]))).T for f in files]
    affine = _affine(SimpleITK.ReadImage([str(file) for file in files]))
    return organ_values(np.stack(slices, axis=-1)), affine


def organ_values(greys: Array) -> Array:
    """Return label values 0 to 4 for the grey values of CHAOS's MR labels; others stay.

    >>> organ_values(np.array([0, 63, 126, 189, 252, 90])).tolist()
    [0, 1, 2, 3, 4, 90]
    """
    values: Array = greys.copy()
    for value, (low, high) in enumerate(_GREYS, start=1):
        values[(greys >= low) & (greys <= high)] = value
    # 1 to 4 never stand in the files: they would be taken for organs
    values[(greys > 0) & (greys < _NO_ORGAN)] = _NO_ORGAN
    return values


def _series_of(labels: Path) -> Path:
    """Return the folder of the series that a folder of labels belongs to; phases share a grid."""
    dicom = labels.parent / DICOM_FOLDER
    phases = sorted(path for path in dicom.glob("*") if path.is_dir())
    inside = [path for path in phases if path.name == "InPhase"]
    return (inside or phases or [dicom])[0]


def _series_files(folder: Path) -> list[Path]:
    """Return the files of the only series of a folder, in the order of their position."""
    reader = SimpleITK.ImageSeriesReader
    found: Sequence[str] = reader.GetGDCMSeriesIDs(str(folder)) if folder.is_dir() else ()
    if len(found) != 1:
        raise ValueError(f"{folder.name} holds {len(found)} DICOM series; one is needed")
    return [Path(name) for name in reader.GetGDCMSeriesFileNames(str(folder), found[0])]


def _affine(image: SimpleITK.Image) -> NDArray[np.float64]:
    affine = np.eye(4)
    direction = np.asarray(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = direction @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    result: NDArray[np.float64] = _LPS_TO_RAS @ affine
    return result
