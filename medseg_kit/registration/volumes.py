"""Volumes as registration sees them: own grid, intensities in [0, 1], the region of interest."""

from __future__ import annotations

import functools

import numpy as np
import SimpleITK

from medseg_kit.registration.cases import RegistrationCase
from medseg_kit.transforms.planes import through_plane
from medseg_kit.typing import UserError

WINDOW = (-125.0, 275.0)  # Hounsfield units
BODY = 0.05  # of the window: darker is air
REGIONS = ("centre", "body", "full")


@functools.lru_cache(maxsize=8)  # seven labelled volumes and what is registered with them
def read_image(case: RegistrationCase, modality: str) -> SimpleITK.Image:
    """Read a volume as float32 with intensities in [0, 1].

    Args:
        case: The volume; its nominal spacing replaces the header's, where it has one.
        modality: "CT" (window -125 to 275 HU) or "MR" (smallest to largest value).

    Raises:
        UserError: If the file cannot be read, is not 3-D or not finite, or is constant.
    """
    try:
        image = SimpleITK.ReadImage(str(case.image), SimpleITK.sitkFloat32)
    except RuntimeError as error:
        raise UserError(f"{case.image} cannot be read as a volume; check the file") from error
    if image.GetDimension() != 3:
        raise UserError(
            f"{case.image} has {image.GetDimension()} dimensions; registration needs volumes"
        )
    if case.spacing is not None:
        image.SetSpacing(case.spacing)
    values = SimpleITK.GetArrayFromImage(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise UserError(f"{case.image} holds NaN or infinite values; run `medseg data check`")
    if not high > low:
        raise UserError(f"{case.image} has one intensity only; registration cannot use it")
    if modality == "CT":
        low, high = WINDOW
    scaled: SimpleITK.Image = (image - low) / (high - low)
    clamped: SimpleITK.Image = SimpleITK.Clamp(scaled, SimpleITK.sitkFloat32, 0.0, 1.0)
    return clamped


def read_label(case: RegistrationCase) -> SimpleITK.Image:
    """Read a label map as uint8 on the grid that `read_image` gives its image.

    Raises:
        UserError: If the volume has no label, or it cannot be read.
    """
    if case.label is None:
        raise UserError(f"{case.key} has no label in the datalist")
    try:
        label = SimpleITK.ReadImage(str(case.label), SimpleITK.sitkUInt8)
    except RuntimeError as error:
        raise UserError(f"{case.label} cannot be read as a label map; check the file") from error
    if case.spacing is not None:
        label.SetSpacing(case.spacing)
    return label


def region_of_interest(image: SimpleITK.Image, region: str) -> SimpleITK.Image:
    """Return the part of a volume that is registered.

    Plain registration of the whole field of view aligns the chest, not the heart.

    Args:
        image: From `read_image`.
        region: "centre", the middle half in plane; "body", the bounding box of what is not air;
            or "full".

    Raises:
        UserError: For another region.
    """
    if region not in REGIONS:
        raise UserError(f"region {region!r}: choose one of {', '.join(REGIONS)}")
    if region == "full":
        return image
    if region == "body":
        return _body(image)
    size, spacing = image.GetSize(), image.GetSpacing()
    through = through_plane(size, spacing)
    start = [0 if axis == through else side // 4 for axis, side in enumerate(size)]
    kept = [s if axis == through else max(1, s // 2) for axis, s in enumerate(size)]
    part: SimpleITK.Image = SimpleITK.RegionOfInterest(image, kept, start)
    return part


def _body(image: SimpleITK.Image) -> SimpleITK.Image:
    body = SimpleITK.ConnectedComponent(image > BODY)
    body = SimpleITK.RelabelComponent(body, sortByObjectSize=True)
    shape = SimpleITK.LabelShapeStatisticsImageFilter()
    shape.Execute(body)
    if not shape.HasLabel(1):
        return image
    box = shape.GetBoundingBox(1)
    part: SimpleITK.Image = SimpleITK.RegionOfInterest(image, box[3:], box[:3])
    return part
