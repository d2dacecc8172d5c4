"""Volumes as registration sees them: own grid, intensities in [0, 1], the region of interest."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import SimpleITK

from medseg_kit.typing import PathLike, UserError

WINDOW = (-125.0, 275.0)  # Hounsfield units
NOMINAL_IN_PLANE, NOMINAL_THICK, NOMINAL_THIN, MANY_SLICES = 1.5, 10.0, 5.0, 12
BODY = 0.05  # of the window: darker is air


@functools.lru_cache(maxsize=32)
def read_volume(path: PathLike, *, modality: str, nominal_spacing: bool) -> SimpleITK.Image:
    """Read a volume as float32 with intensities in [0, 1].

    Args:
        path: NIfTI file.
        modality: "CT" (window -125 to 275 HU) or "MR" (smallest to largest value).
        nominal_spacing: Replace the header's spacing, for data that have lost it: 1.5 mm in plane
            and 10 mm between slices, 5 mm with more than 12 slices (cine cardiac MR).

    Raises:
        UserError: If the file cannot be read, is not 3-D, or is constant.
    """
    try:
        image = SimpleITK.ReadImage(str(path), SimpleITK.sitkFloat32)
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read as a volume; check the file") from error
    if image.GetDimension() != 3:
        raise UserError(f"{path} has {image.GetDimension()} dimensions; registration needs volumes")
    if nominal_spacing:
        image.SetSpacing(nominal(image.GetSize()))
    low, high = WINDOW
    if modality != "CT":
        values = SimpleITK.GetArrayFromImage(image)
        low, high = float(values.min()), float(values.max())
    if not high > low:
        raise UserError(f"{path} has one intensity only; registration cannot use it")
    scaled = (image - low) / (high - low)
    clamped: SimpleITK.Image = SimpleITK.Clamp(scaled, SimpleITK.sitkFloat32, 0.0, 1.0)
    return clamped


def read_label(path: PathLike, *, nominal_spacing: bool) -> SimpleITK.Image:
    """Read a label map as uint8 on the grid that `read_volume` gives its image."""
    label: SimpleITK.Image = SimpleITK.ReadImage(str(path), SimpleITK.sitkUInt8)
    if nominal_spacing:
        label.SetSpacing(nominal(label.GetSize()))
    return label


def nominal(size: tuple[int, ...]) -> tuple[float, float, float]:
    """Return the nominal spacing of a cine cardiac volume, slices along the last axis.

    >>> nominal((256, 216, 10))
    (1.5, 1.5, 10.0)
    """
    thick = NOMINAL_THIN if size[2] > MANY_SLICES else NOMINAL_THICK
    return NOMINAL_IN_PLANE, NOMINAL_IN_PLANE, thick


def region_of_interest(image: SimpleITK.Image, *, modality: str) -> SimpleITK.Image:
    """Return the part that is registered: the middle half in plane (MR), the body's box (CT).

    Plain registration of the whole field of view aligns the chest, not the heart.
    """
    if modality == "CT":
        body = SimpleITK.RelabelComponent(
            SimpleITK.ConnectedComponent(image > BODY), sortByObjectSize=True
        )
        shape = SimpleITK.LabelShapeStatisticsImageFilter()
        shape.Execute(body)
        if not shape.HasLabel(1):
            return image
        box = shape.GetBoundingBox(1)
        body_part: SimpleITK.Image = SimpleITK.RegionOfInterest(image, box[3:], box[:3])
        return body_part
    size, spacing = image.GetSize(), image.GetSpacing()
    through = int(np.argmax(spacing))
    start = [0 if axis == through else side // 4 for axis, side in enumerate(size)]
    kept = [side if axis == through else side // 2 for axis, side in enumerate(size)]
    middle: SimpleITK.Image = SimpleITK.RegionOfInterest(image, kept, start)
    return middle


def case_file(folder: Path, name: str) -> Path:
    """Return the registered label of a case."""
    return folder / f"{name}.nii.gz"
