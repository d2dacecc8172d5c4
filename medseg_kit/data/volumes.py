"""Reading and writing of volumes, with a header that every reader understands alike."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from medseg_kit.data.manifest_types import StoredIntensity
from medseg_kit.data.stacks import read_stack

# Largest difference between two affines that counts as rounding, per entry (mm and mm a voxel).
AFFINE_TOLERANCE = 1e-3
SCANNER_ANATOMY = 1  # NIfTI code of sform and qform: coordinates of the scanner
INT16 = np.iinfo(np.int16)
STORED_AS_IS = frozenset({"uint8", "int16", "uint16", "float32"})
Array = NDArray[Any]
Report = Callable[[str, str], None]  # (kind, message)


@dataclass(frozen=True)
class Volume:
    """A three-dimensional array with its place in the patient.

    Attributes:
        array: Stored values, header scaling applied; shape (H, W, D).
        affine: Voxel index to RAS+ millimetres, shape (4, 4).
    """

    array: Array
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm, ordered as the array's axes."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def orientation(self) -> str:
        """Directions that the array's axes point to, for example LAS."""
        return "".join(nib.orientations.aff2axcodes(self.affine))


def read_volume(path: Path, report: Report) -> Volume | None:
    """Read a NIfTI file to its end; report what is wrong and return None where nothing is usable.

    Args:
        path: NIfTI file, or the folder of a DICOM series or of CHAOS's PNG labels.
        report: Called with kind and message of each finding.

    Returns:
        The volume, trailing axes of length one removed.
    """
    if path.is_dir():
        return _read_folder(path, report)
    if not path.is_file():
        report("missing-file", "the file does not exist; restore it or remove its partner")
        return None
    try:
        image = nib.nifti1.Nifti1Image.from_filename(path)
        array = np.asanyarray(image.dataobj)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        report("unreadable", f"{_one_line(error)}; copy or download the file again")
        return None
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or 0 in array.shape:
        report("not-3d", f"the array has shape {array.shape}; a single 3-D volume is needed")
        return None
    if not _check_geometry(image, report):
        return None
    return Volume(array, np.asarray(image.affine, dtype=np.float64))


def _read_folder(folder: Path, report: Report) -> Volume | None:
    try:
        array, affine = read_stack(folder)
    except (RuntimeError, OSError, ValueError) as error:
        report("unreadable", f"{_one_line(error)}; copy or download the folder again")
        return None
    if array.ndim != 3 or 0 in array.shape:
        report("not-3d", f"the array has shape {array.shape}; a single 3-D volume is needed")
        return None
    return Volume(array, affine)


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
        rounded = np.rint(array * np.float64(stored.slope) + stored.intercept)
        hounsfield: Array = rounded.clip(INT16.min, INT16.max).astype(np.int16)
        return hounsfield
    if stored.is_identity and array.dtype.name in STORED_AS_IS:
        return array
    values: Array = (array * np.float64(stored.slope) + stored.intercept).astype(np.float32)
    return values


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


def content_hash(array: Array) -> str:
    """Hash voxel values, whatever type and compression they were stored with.

    Args:
        array: Voxel values; compared as 32-bit floats.

    Returns:
        SHA-256 of shape and values.
    """
    digest = hashlib.sha256(str(array.shape).encode())
    for index in range(array.shape[-1]):  # slice by slice: large volumes are not copied whole
        digest.update(np.ascontiguousarray(array[..., index], dtype="<f4").data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _check_geometry(image: nib.nifti1.Nifti1Image, report: Report) -> bool:
    axes = np.asarray(image.affine, dtype=np.float64)[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(image.affine).all() or not (lengths > 0).all():
        report("bad-geometry", f"the affine is not usable: {np.round(image.affine, 4).tolist()}")
        return False
    angles = np.abs((axes / lengths).T @ (axes / lengths) - np.eye(3))
    if angles.max() > AFFINE_TOLERANCE:
        cosine = round(float(angles.max()), 4)
        report("bad-geometry", f"the axes are sheared (cosine {cosine}); resample the volume first")
        return False
    sform, sform_code = image.get_sform(coded=True)
    qform, qform_code = image.get_qform(coded=True)
    if sform is None and qform is None:
        report("no-orientation", "sform and qform codes are 0; left and right are unknown")
    elif sform_code and qform_code:
        difference = float(np.abs(sform - qform).max())
        if difference > AFFINE_TOLERANCE:
            report("orientation-conflict", f"sform and qform differ by up to {difference:.4g}")
    return True


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
