"""Checks of one image and its label; the same code serves `data prepare` and `data check`."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from medseg_kit.data.findings import Finding

# Largest difference between two affines that counts as rounding, per entry (mm and mm a voxel).
AFFINE_TOLERANCE = 1e-3
MAX_COUNTED_LABEL = 65_535
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


@dataclass(frozen=True)
class Expected:
    """What the values of a data set must be.

    Attributes:
        labels: Label value to name, background included.
        limits: Smallest and largest intensity that can occur, or None.
        reaches_below: An intensity that every image falls below, or None.
        laterality: Pairs of label values, the patient's right side first.
    """

    labels: Mapping[int, str]
    limits: tuple[float, float] | None = None
    reaches_below: float | None = None
    laterality: tuple[tuple[int, int], ...] = ()


@dataclass
class CheckedPair:
    """An image and its label after the checks; volumes are None where a file was unreadable."""

    image: Volume | None = None
    label: Volume | None = None
    counts: dict[int, int] = field(default_factory=dict)  # label value -> voxels
    findings: list[Finding] = field(default_factory=list)


def check_pair(
    image_path: Path, label_path: Path | None, expected: Expected, *, root: Path
) -> CheckedPair:
    """Read an image and its label and collect everything that is wrong with them.

    Args:
        image_path: Image file.
        label_path: Label file, or None for an unlabelled image.
        expected: Values that the data set may hold.
        root: Findings name files relative to this folder.

    Returns:
        The volumes and the findings; never raises for bad data.
    """
    pair = CheckedPair()

    def reporter(path: Path) -> Report:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        return lambda kind, message: pair.findings.append(Finding(name, kind, message))

    pair.image = read_volume(image_path, reporter(image_path))
    if pair.image is not None:
        _check_intensities(pair.image.array, expected, reporter(image_path))
    if label_path is None:
        return pair
    report = reporter(label_path)
    pair.label = read_volume(label_path, report)
    if pair.label is None:
        return pair
    pair.counts = _count_labels(pair.label.array, expected, report)
    _check_laterality(pair.label, pair.counts, expected, report)
    if pair.image is not None:
        _check_grid(pair.image, pair.label, report)
    return pair


def read_volume(path: Path, report: Report) -> Volume | None:
    """Read a NIfTI file to its end; report what is wrong and return None where nothing is usable.

    Args:
        path: NIfTI file.
        report: Called with kind and message of each finding.

    Returns:
        The volume, trailing axes of length one removed.
    """
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


def content_hash(array: Array) -> str:
    """Hash voxel values, whatever type and compression they were stored with.

    Args:
        array: Voxel values; compared as 32-bit floats.

    Returns:
        SHA-256 of shape and values.
    """
    digest = hashlib.sha256(str(array.shape).encode())
    digest.update(np.ascontiguousarray(array, dtype="<f4").data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


def _check_intensities(array: Array, expected: Expected, report: Report) -> None:
    num_bad = 0 if array.dtype.kind in "iub" else int((~np.isfinite(array)).sum())
    if num_bad:
        report("non-finite", f"{num_bad} of {array.size} voxels are NaN or infinite")
        return
    low, high = float(array.min()), float(array.max())
    if low == high:
        report("constant-image", f"every voxel is {low:g}")
    elif expected.limits and not (expected.limits[0] <= low and high <= expected.limits[1]):
        report(
            "stored-range",
            f"values {low:g} to {high:g} lie outside {list(expected.limits)}; is this the manifest"
            " of another copy of the data?",
        )
    elif expected.reaches_below is not None and low >= expected.reaches_below:
        report(
            "stored-range",
            f"the smallest value is {low:g}, Hounsfield units reach below {expected.reaches_below:g};"
            " a rescaled copy needs a manifest with its stored_intensity",
        )


def _count_labels(array: Array, expected: Expected, report: Report) -> dict[int, int]:
    """Count the voxels of each label value and report values that should not be there."""
    if array.dtype.kind not in "iub":
        if not np.isfinite(array).all():
            report("non-finite", "the label holds NaN or infinite values")
            return {}
        if fractions := np.unique(array[array != np.rint(array)])[:5].tolist():
            report("label-values", f"values are no whole numbers, for example {fractions}")
            return {}
    if array.min() >= 0 and array.max() <= MAX_COUNTED_LABEL:
        voxels = np.bincount(array.astype(np.uint16, copy=False).ravel(order="K"))
        counts = {int(value): int(voxels[value]) for value in np.flatnonzero(voxels)}
    else:
        values, voxels = np.unique(array, return_counts=True)
        counts = {int(v): int(n) for v, n in zip(values, voxels, strict=True)}
    unknown = {value: n for value, n in counts.items() if value not in expected.labels}
    if unknown:
        found = ", ".join(f"{value} ({n} voxels)" for value, n in sorted(unknown.items())[:8])
        known = ", ".join(f"{value} {name}" for value, name in sorted(expected.labels.items()))
        report("label-values", f"unexpected value(s) {found}; the label map has {known}")
    elif set(counts) <= {0}:
        report("empty-label", "no foreground voxel")
    return counts


def _check_laterality(
    label: Volume, counts: Mapping[int, int], expected: Expected, report: Report
) -> None:
    for right, left in expected.laterality:
        if not (counts.get(right) and counts.get(left)):
            continue
        # In RAS+ the first coordinate grows towards the patient's right.
        x_right, x_left = (_centroid_x(label, value) for value in (right, left))
        if x_right <= x_left:
            names = expected.labels
            report(
                "laterality",
                f"{names[right]} (x = {x_right:.0f} mm) lies left of {names[left]} (x = {x_left:.0f} mm):"
                " the volume is mirrored or its affine is wrong",
            )


def _centroid_x(label: Volume, value: int) -> float:
    index = np.argwhere(label.array == value).mean(axis=0)
    return float(label.affine[0, :3] @ index + label.affine[0, 3])


def _check_grid(image: Volume, label: Volume, report: Report) -> None:
    if image.array.shape != label.array.shape:
        report("grid-shape", f"label size {label.array.shape}, image size {image.array.shape}")
        return
    difference = float(np.abs(image.affine - label.affine).max())
    if difference > AFFINE_TOLERANCE:
        report(
            "grid-affine",
            f"the affine differs from the image's by up to {difference:.4g} (tolerance"
            f" {AFFINE_TOLERANCE:g}); does the label belong to this image?",
        )


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
