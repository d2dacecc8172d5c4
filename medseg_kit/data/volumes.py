"""Writing of prepared volumes: unit, numbering, and a header that every reader understands alike."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from medseg_kit.data.checks import Array, Volume
from medseg_kit.data.manifest import StoredIntensity

SCANNER_ANATOMY = 1  # NIfTI code of sform and qform: coordinates of the scanner
INT16 = np.iinfo(np.int16)
STORED_AS_IS = frozenset({"uint8", "int16", "uint16", "float32"})


def to_unit(array: Array, stored: StoredIntensity, *, intensity: str) -> Array:
    """Turn stored numbers into the unit of the manifest.

    Args:
        array: Stored values.
        stored: Slope and intercept of the manifest.
        intensity: ``HU`` gives whole numbers as int16 (clipped to its range); ``arbitrary`` keeps
            the values, doubles and wide integers as float32.

    Returns:
        The values in their unit.
    """
    if intensity == "HU":
        if stored.is_identity and array.dtype == np.int16:
            return array
        values = np.rint(array * np.float64(stored.slope) + stored.intercept)
        return values.clip(INT16.min, INT16.max).astype(np.int16)
    if stored.is_identity and array.dtype.name in STORED_AS_IS:
        return array
    return (array * np.float64(stored.slope) + stored.intercept).astype(np.float32)


def relabel(array: Array, mapping: Mapping[int, int]) -> Array:
    """Replace label values by a mapping; values that it does not name become background.

    Args:
        array: Label values, whole numbers from 0 to 65,535.
        mapping: Old value to new value.

    Returns:
        The new labels as uint8.
    """
    table = np.zeros(int(array.max()) + 1, np.uint8)
    for old, new in mapping.items():
        if old < len(table):
            table[old] = new
    return table[array.astype(np.uint16, copy=False)]


def save_volume(volume: Volume, path: Path) -> None:
    """Write a volume as NIfTI with the affine in both sform and qform.

    Args:
        volume: Values and affine; the affine must not be sheared.
        path: File to write; the same volume always gives the same bytes.
    """
    image = nib.nifti1.Nifti1Image(volume.array, volume.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, SCANNER_ANATOMY)
    image.set_qform(volume.affine, SCANNER_ANATOMY)
    image.to_filename(path)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
