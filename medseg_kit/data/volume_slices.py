"""One volume cut into the slices that a 2-D network sees, in training as in inference."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation
from monai.utils.enums import CommonKeys
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from medseg_kit.transforms.checks import check_image, check_label
from medseg_kit.transforms.pipelines import AXIS_NAMES, VolumePreprocessing
from medseg_kit.transforms.planes import (
    INTERPOLATIONS,
    check_direction,
    resize_slices,
    slicing_axis,
)
from medseg_kit.typing import UserError

MAX_CLASSES = 255
# What nibabel and zlib raise for a file that is cut off or no image.
_DAMAGED = (ImageFileError, HeaderDataError, WrapStructError, EOFError, OSError, zlib.error)


class VolumeSlices:
    """Cuts volumes and labels into slices of one size.

    Args:
        preprocessing: From a file to a volume on the network's grid, key ``image``.
        image_size: Side of the square slices, or ``(H, W)``.
        num_classes: ``1 + K``.
        interpolation: How images are resized, see `resize_slices`.
        direction: Direction of the body across which slices are cut, see `slicing_axis`; as the
            volume was acquired if None.

    Raises:
        ValueError: For an unknown ``interpolation`` or ``direction``, or sizes or classes that
            cannot be.
    """

    def __init__(
        self,
        preprocessing: VolumePreprocessing,
        *,
        image_size: int | Sequence[int],
        num_classes: int,
        interpolation: str = "linear",
        direction: str | None = None,
    ) -> None:
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {list(INTERPOLATIONS)}, got {interpolation!r}"
            )
        check_direction(direction)
        size = [image_size] * 2 if isinstance(image_size, int) else [int(s) for s in image_size]
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"image_size must be one or two positive numbers, got {image_size}")
        if not 2 <= num_classes <= MAX_CLASSES:
            raise ValueError(f"num_classes must be from 2 to {MAX_CLASSES}, got {num_classes}")
        self.preprocessing = preprocessing
        self.size = (size[0], size[1])
        self.num_classes = num_classes
        self.interpolation = interpolation
        self.direction = direction

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything that the slices depend on beside the files."""
        preprocessing = self.preprocessing
        return {
            "window": preprocessing.window,
            "intensity": preprocessing.intensity,
            "orientation": preprocessing.orientation,
            "size": self.size,
            "num_classes": self.num_classes,
            "interpolation": self.interpolation,
            "direction": self.direction,
        }

    def cut(
        self, case: Mapping[str, Any], registered: Path | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the slices of a case, its label and its registered label.

        Args:
            case: ``image`` and perhaps ``label``, paths.
            registered: File of the registered label, if there is one.

        Returns:
            Images ``(N, 1, H, W)`` float32, labels and registered labels ``(N, H, W)`` uint8, zeros
            where there is no file.

        Raises:
            UserError: When a file is missing, no 3-D volume, not finite, or a label does not fit.
        """
        image = self._image(Path(case[CommonKeys.IMAGE]))
        axis = slicing_axis(image, direction=self.direction)
        slices = image.as_tensor().movedim(1 + axis, 0)
        images = resize_slices(slices, self.size, interpolation=self.interpolation)
        label = self._labels(case.get(CommonKeys.LABEL), image, axis)
        return images.contiguous(), label, self._labels(registered, image, axis)

    def _image(self, path: Path) -> MetaTensor:
        _check_file(path)
        with _damage_named(path):
            image: MetaTensor = self.preprocessing({CommonKeys.IMAGE: str(path)})[CommonKeys.IMAGE]
        check_image(image, path)
        return image

    def _labels(self, path: str | Path | None, image: MetaTensor, axis: int) -> torch.Tensor:
        if not path:
            return torch.zeros(image.shape[1 + axis], *self.size, dtype=torch.uint8)
        _check_file(Path(path))
        with _damage_named(Path(path)):
            label = LoadImage(ensure_channel_first=True, image_only=True)(str(path))
        if self.preprocessing.orientation is not None:
            label = Orientation(self.preprocessing.orientation, labels=AXIS_NAMES)(label)
        check_label(label, image, path, num_classes=self.num_classes)
        slices = label.as_tensor().movedim(1 + axis, 0).to(torch.uint8)
        return resize_slices(slices, self.size, interpolation="nearest")[:, 0].contiguous()


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Let a file that its reader does not understand end in an error that names it."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error  # MONAI wraps what happens in a transform
        while cause is not None:
            if isinstance(cause, _DAMAGED):
                reason = str(cause).partition("\n")[0] or type(cause).__name__
                raise UserError(f"{path} cannot be read ({reason}); copy it again") from error
            cause = cause.__cause__
        raise


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(
            f"{path} is a folder; one image file is needed: convert a DICOM series to NIfTI first"
        )
    if not path.is_file():
        raise UserError(f"{path} does not exist; check its name, or prepare the data again")
