"""What an image and its label must be before a network learns from them or is measured on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import ImageMetaKey
from monai.utils.enums import CommonKeys

from medseg_kit.transforms.grids import shift_in_voxels
from medseg_kit.typing import UserError

GRID_TOLERANCE_VOXELS = 0.5  # more would move a label by a voxel


class CheckPaird(Transform):
    """Passes ``image`` and ``label`` on as they are, if they belong together.

    The classes are those of ``annotated``, as the datalist gives it; without it label values may be
    any whole numbers.

    Raises:
        UserError: As `check_image` and `check_label`; names the file.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data."""
        image, label = data[CommonKeys.IMAGE], data[CommonKeys.LABEL]
        check_image(image, _file(image))
        classes = len(data["annotated"]) if "annotated" in data else None
        check_label(label, image, _file(label), num_classes=classes)
        return dict(data)


def check_image(image: MetaTensor, path: str | Path) -> None:
    """Raise `UserError` unless an image is one finite 3-D volume ``(1, X, Y, Z)``.

    Args:
        image: As read.
        path: Its file, for the message.
    """
    if image.dim() != 4 or image.shape[0] != 1:
        raise UserError(
            f"{path} has shape {tuple(image.shape)} (channels first); a single 3-D volume of"
            " one channel is needed: a 2-D image as H x W x 1, of a 4-D series each time frame"
            " as its own file"
        )
    if not bool(torch.isfinite(image.as_tensor()).all()):
        raise UserError(f"{path} holds NaN or infinite values; mend it with `medseg data check`")


def check_label(
    label: MetaTensor, image: MetaTensor, path: str | Path, *, num_classes: int | None = None
) -> None:
    """Raise `UserError` unless a label lies on its image's grid and holds whole numbers.

    Args:
        label: ``(1, X, Y, Z)``, on the axes of the image.
        image: ``(1, X, Y, Z)``.
        path: The label's file, for the message.
        num_classes: ``1 + K``; the largest value is below it, where given.
    """
    if label.shape != image.shape:
        channels = f" and {len(label)} channels" if len(label) > 1 else ""
        raise UserError(
            f"{path} has size {tuple(label.shape[1:])}{channels}, its image"
            f" {tuple(image.shape[1:])}; a label lies on the grid of its image"
        )
    shift = shift_in_voxels(image.shape[1:], image.affine, label.affine)
    if shift > GRID_TOLERANCE_VOXELS:
        raise UserError(
            f"{path} lies up to {shift:.1f} voxels beside its image: the affines of the two"
            " files differ; a label lies on the grid of its image"
        )
    values = label.as_tensor()
    if bool((values != values.round()).any()) or not float(values.min()) >= 0:
        raise UserError(f"{path} holds values that are no whole numbers from 0 on")
    if num_classes is not None and float(values.max()) >= num_classes:
        raise UserError(
            f"{path} holds the value {float(values.max()):g}; the network has the classes 0 to"
            f" {num_classes - 1}: number its organs so, or prepare the data with a view of them"
        )


def _file(volume: MetaTensor) -> str:
    return str(volume.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "a volume"))
