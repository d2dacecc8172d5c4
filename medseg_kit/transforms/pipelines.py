"""Factories of the pipelines that the bundles share; each returns one `Compose`.

`volume_preprocessing` is the deterministic part for training, validation and inference alike,
`volume_training` adds cropping and augmentation, `volume_postprocessing` brings a prediction back
to the grid of its file.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    CastToTyped,
    Compose,
    EnsureTyped,
    FgBgToIndicesd,
    Invertd,
    Lambdad,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandHistogramShiftd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
    SaveImaged,
    ScaleIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    SpatialPadd,
    Transform,
)
from monai.utils.enums import CommonKeys

from medseg_kit.transforms.checks import CheckPaird
from medseg_kit.transforms.components import KeepLargestd
from medseg_kit.transforms.modality import ClipCTorMRd, ScaleCTorMRd
from medseg_kit.transforms.spacing import Spacingd

AXIS_NAMES = (("L", "R"), ("P", "A"), ("I", "S"))
MAX_BACKGROUND_CENTRES = 20_000

# Scaling of a whole volume whose intensities have no unit (MR), by name: mean 0 and SD 1 over the
# non-zero voxels; smallest and largest value to 0 and 1; the 0.5 and 99.5 percentiles to 0 and 1
# with the rest clipped, which a few bright voxels do not disturb; and CT and MR told apart, each
# scaled, or only clipped, in its own way.
INTENSITIES: Mapping[str, Transform] = {
    "zscore": NormalizeIntensityd(keys=CommonKeys.IMAGE, nonzero=True),
    "minmax": ScaleIntensityd(keys=CommonKeys.IMAGE, minv=0.0, maxv=1.0),
    "percentile": ScaleIntensityRangePercentilesd(
        keys=CommonKeys.IMAGE, lower=0.5, upper=99.5, b_min=0.0, b_max=1.0, clip=True
    ),
    "ct_or_mr": ScaleCTorMRd(keys=CommonKeys.IMAGE),
    "clip_ct_or_mr": ClipCTorMRd(keys=CommonKeys.IMAGE),
}


class VolumePreprocessing(Compose):
    """The deterministic steps from a file to the network's input; remembers its parameters.

    Read, channel first, image and label checked against each other, orientation, spacing,
    intensity. Fast inference recognises this class and
    does the same work with less memory traffic.

    Args:
        keys: ``("image",)`` for inference, ``("image", "label")`` for training and validation.
        spacing: Voxel size of the network's grid in mm; the file's own if None.
        orientation: Axis codes of the network's grid; the file's own if None.
        window: Intensities mapped to 0 and 1 and clipped (CT: Hounsfield units).
        intensity: What is done without a window, a key of `INTENSITIES`.

    Raises:
        ValueError: If ``intensity`` is unknown.
    """

    def __init__(
        self,
        keys: Sequence[str] = (CommonKeys.IMAGE,),
        *,
        spacing: Sequence[float] | None = None,
        orientation: str | None = "RAS",
        window: Sequence[float] | None = None,
        intensity: str = "zscore",
    ) -> None:
        if intensity not in INTENSITIES:
            raise ValueError(f"intensity must be one of {list(INTENSITIES)}, got {intensity!r}")
        self.keys = tuple(keys)
        self.spacing = None if spacing is None else tuple(float(size) for size in spacing)
        self.orientation = orientation
        self.window = None if window is None else (float(window[0]), float(window[1]))
        self.intensity = intensity
        super().__init__(self._steps())

    def _steps(self) -> list[Transform]:
        keys = self.keys
        steps: list[Transform] = [_reader(keys)]
        if CommonKeys.LABEL in keys:
            steps.append(CheckPaird())
        if self.orientation is not None:
            steps.append(Orientationd(keys=keys, axcodes=self.orientation, labels=AXIS_NAMES))
        if self.spacing is not None:
            modes = ["nearest" if key == CommonKeys.LABEL else "bilinear" for key in keys]
            steps.append(Spacingd(keys=keys, pixdim=self.spacing, mode=modes))
        if self.window is None:
            steps.append(INTENSITIES[self.intensity])
        else:
            low, high = self.window
            steps.append(
                ScaleIntensityRanged(
                    keys=CommonKeys.IMAGE, a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True
                )
            )
        return [*steps, EnsureTyped(keys=CommonKeys.IMAGE, dtype=torch.float32)]

    def inverse(self, data: Any) -> Any:
        """Return the data on the file's grid; as it is when the grid was never changed.

        MONAI's `Compose` would warn that it finds no step to undo.
        """
        return data if self.spacing is None and self.orientation is None else super().inverse(data)


def _reader(keys: Sequence[str]) -> LoadImaged:
    """Return the reading step, without MONAI 1.6's warning that a GPU decoder is not installed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
        return LoadImaged(keys=keys, ensure_channel_first=True, image_only=True)


def volume_preprocessing(
    keys: Sequence[str] = (CommonKeys.IMAGE,),
    *,
    spacing: Sequence[float] | None = None,
    orientation: str | None = "RAS",
    window: Sequence[float] | None = None,
    intensity: str = "zscore",
) -> VolumePreprocessing:
    """Return the deterministic pipeline; see `VolumePreprocessing` for the arguments."""
    return VolumePreprocessing(
        keys, spacing=spacing, orientation=orientation, window=window, intensity=intensity
    )


def volume_training(
    preprocessing: VolumePreprocessing,
    *,
    roi_size: Sequence[int],
    num_samples: int = 1,
    foreground_share: float = 0.5,
    rotation_deg: float = 0.0,
    scaling: float = 0.0,
    intensity: float = 0.0,
    acquisition: float = 0.0,
) -> Compose:
    """Return preprocessing, crops of ``roi_size`` and augmentation for ``image`` and ``label``.

    There is no mirroring: it would exchange left and right organs.

    Args:
        preprocessing: The deterministic part with keys ``image`` and ``label``; cached by MONAI's
            `CacheDataset` up to the first random step.
        roi_size: Size of a crop in voxels; smaller volumes are padded.
        num_samples: Crops a case and epoch; the transform returns a list of so many items.
        foreground_share: Share of the crops centred on a labelled voxel, in ``[0, 1]``.
        rotation_deg: Largest rotation about each axis in degrees.
        scaling: Largest relative change of size.
        intensity: Largest relative change of intensity and contrast; noise has a tenth of it as SD.
        acquisition: Share of the crops, in ``[0, 1]``, that look like another scanner or contrast
            phase: a random monotone intensity curve; less often stronger noise (SD up to a tenth of
            the intensity range, for images scaled to ``[0, 1]``), blur or a lower resolution.
    """
    keys = [CommonKeys.IMAGE, CommonKeys.LABEL]
    steps: list[Transform] = [
        *preprocessing.transforms,
        CastToTyped(keys=CommonKeys.LABEL, dtype=torch.uint8),
        SpatialPadd(keys=keys, spatial_size=roi_size),
        FgBgToIndicesd(keys=CommonKeys.LABEL),
        Lambdad(keys=f"{CommonKeys.LABEL}_bg_indices", func=_thin),
        RandCropByPosNegLabeld(
            keys=keys,
            label_key=CommonKeys.LABEL,
            spatial_size=roi_size,
            pos=foreground_share,
            neg=1 - foreground_share,
            num_samples=num_samples,
            fg_indices_key=f"{CommonKeys.LABEL}_fg_indices",
            bg_indices_key=f"{CommonKeys.LABEL}_bg_indices",
            allow_smaller=False,
        ),
    ]
    if rotation_deg or scaling:
        angle = float(np.deg2rad(rotation_deg))
        steps.append(
            RandAffined(
                keys=keys,
                prob=0.7,
                spatial_size=roi_size,
                cache_grid=True,
                rotate_range=[angle] * 3,
                scale_range=[scaling] * 3,
                mode=["bilinear", "nearest"],
                padding_mode="border",
            )
        )
    if intensity:
        steps += _intensity_augmentation(intensity)
    if acquisition:
        steps += _acquisition_augmentation(acquisition)
    return Compose(steps)


def _thin(indices: torch.Tensor) -> torch.Tensor:
    """Keep every n-th of the candidate crop centres: MONAI copies them for each crop."""
    return indices[:: max(1, len(indices) // MAX_BACKGROUND_CENTRES)]


def _intensity_augmentation(amount: float) -> list[Transform]:
    image = CommonKeys.IMAGE
    return [
        RandScaleIntensityd(keys=image, factors=amount, prob=0.5),
        RandShiftIntensityd(keys=image, offsets=amount / 2, prob=0.5),
        RandAdjustContrastd(
            keys=image, prob=0.3, gamma=(1 - amount, 1 + amount), retain_stats=True
        ),
        RandGaussianNoised(keys=image, prob=0.3, std=amount / 10),
    ]


def _acquisition_augmentation(share: float) -> list[Transform]:
    image = CommonKeys.IMAGE
    sigma = (0.3, 1.0)
    return [
        RandHistogramShiftd(keys=image, prob=share, num_control_points=(3, 6)),
        RandSimulateLowResolutiond(keys=image, prob=0.4 * share, zoom_range=(0.5, 1.0)),
        RandGaussianSmoothd(
            keys=image, prob=0.4 * share, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma
        ),
        RandGaussianNoised(keys=image, prob=0.6 * share, std=0.1),
    ]


class VolumePostprocessing(Compose):
    """Softmax, inversion to the file's grid, argmax to one channel, uint8: the way back to a file.

    Fast inference recognises this class and computes the same label map without resampling every
    class to the file's grid.

    Args:
        preprocessing: The transform that made the network's input; it is inverted.
        num_regions: Largest connected regions of each organ that stay; all where None.
        output_dir: Where label maps are written as ``<case>/<case>.nii.gz``; not written if None.
        output_postfix: Appended to the file's name.
    """

    def __init__(
        self,
        preprocessing: Compose,
        *,
        num_regions: Sequence[int | None] = (),
        output_dir: str | None = None,
        output_postfix: str = "",
    ) -> None:
        self.preprocessing = preprocessing
        pred = CommonKeys.PRED
        self.cleaning = KeepLargestd(pred, num_regions=num_regions)
        steps: list[Transform] = [
            Activationsd(keys=pred, softmax=True),
            Invertd(
                keys=pred,
                transform=preprocessing,
                orig_keys=CommonKeys.IMAGE,
                nearest_interp=False,
                to_tensor=True,
            ),
            AsDiscreted(keys=pred, argmax=True),
            CastToTyped(keys=pred, dtype=torch.uint8),
            self.cleaning,
        ]
        if output_dir is not None:
            steps.append(
                SaveImaged(
                    keys=pred,
                    output_dir=output_dir,
                    output_postfix=output_postfix,
                    output_dtype=np.uint8,
                    resample=False,
                )
            )
        super().__init__(steps)


def volume_postprocessing(
    preprocessing: Compose,
    *,
    num_regions: Sequence[int | None] = (),
    output_dir: str | None = None,
    output_postfix: str = "",
) -> VolumePostprocessing:
    """Return the way back to the file's grid; see `VolumePostprocessing` for the arguments."""
    return VolumePostprocessing(
        preprocessing,
        num_regions=num_regions,
        output_dir=output_dir,
        output_postfix=output_postfix,
    )


def validation_postprocessing(num_classes: int) -> Compose:
    """Return argmax and one-hot of ``pred``, one-hot of ``label``: for Dice on the network's grid.

    Args:
        num_classes: ``1 + K``.
    """
    return Compose(
        [
            AsDiscreted(
                keys=(CommonKeys.PRED, CommonKeys.LABEL),
                argmax=(True, False),
                to_onehot=num_classes,
            )
        ]
    )
