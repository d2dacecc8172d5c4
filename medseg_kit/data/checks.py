"""Checks of one image and its label; the same code serves `data prepare` and `data check`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg_kit.data.findings import Finding
from medseg_kit.data.volumes import AFFINE_TOLERANCE, Array, Report, Volume, read_volume

MAX_COUNTED_LABEL = 65_535


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


@dataclass(frozen=True)
class ImageContent:
    """What `duplicate_findings` compares: an image's subject, section, file and content hash."""

    subject: str
    section: str
    file: str
    content: str | None  # None where the file was unreadable


def duplicate_findings(images: Iterable[ImageContent]) -> list[Finding]:
    """Find images of different subjects with the same voxel values.

    Args:
        images: All images.

    Returns:
        One finding for each image that repeats an earlier one of another subject; it is worse
        where the two stand in different sections.
    """
    first: dict[str, ImageContent] = {}
    findings = []
    for image in images:
        if image.content is None:
            continue
        other = first.setdefault(image.content, image)
        if other.subject != image.subject:
            leaked = other.section != image.section
            message = f"same voxel values as {other.file} (subject {other.subject})"
            if leaked:
                message += f", {image.section} repeats {other.section}"
            kind = "leaked-image" if leaked else "duplicate-image"
            findings.append(Finding(image.file, kind, f"{message}; remove one of the two"))
    return findings


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
            f"the smallest value is {low:g}, Hounsfield units reach below"
            f" {expected.reaches_below:g}; a rescaled copy needs a manifest with stored_intensity",
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
                f"{names[right]} (x = {x_right:.0f} mm) lies left of {names[left]} (x ="
                f" {x_left:.0f} mm): the volume is mirrored or its affine is wrong",
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
