"""One scaling of intensities for a network that takes CT and MR alike.

FedCoWPro / ALPNet: CT clipped to [-125, 275] HU, MR to its 99.5 percentile, both standardised.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

CT_WINDOW = (-125.0, 275.0)  # HU
# Air is about -1000 HU (-125 in data that were windowed before); no MR image is stored so low.
CT_BELOW = -100.0
# Mean and SD of CT in the window mapped to [0, 1], over 12 BTCV scans (0.172, 0.245), rounded.
CT_MEAN, CT_SD = 0.17, 0.25
CT_FLOOR = -CT_MEAN / CT_SD
MR_QUANTILE = 0.995
_TOLERANCE = 1e-5
_MOST_ABOVE = (CT_BELOW - CT_WINDOW[0]) / (CT_WINDOW[1] - CT_WINDOW[0]) / CT_SD
_STANDARDISED = 0.01  # rounding of a mean and SD over a volume


class ClipCTorMRd(MapTransform):
    """Cut off what `ScaleCTorMRd` cuts off, and keep the unit of the file.

    Args:
        keys: Images, channel first.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with clipped images, float32."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = clip_ct_or_mr(torch.as_tensor(result[key]))
        return result


class ScaleCTorMRd(MapTransform):
    """Standardise CT by fixed numbers and MR by those of the volume.

    A volume that reaches below -100 is CT in Hounsfield units. CT is clipped to [-125, 275] HU and
    shifted and scaled by constants, so that an organ has one value in all scans, however much air
    is around; MR is clipped above its 99.5 percentile and gets mean 0 and SD 1.

    Args:
        keys: Images, channel first.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with scaled images, float32."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = scale_ct_or_mr(torch.as_tensor(result[key]))
        return result


def scale_ct_or_mr(image: torch.Tensor) -> torch.Tensor:
    """Return a scaled volume, see `ScaleCTorMRd`; a constant MR volume becomes 0."""
    clipped = clip_ct_or_mr(image)
    if is_ct(image):
        low, high = CT_WINDOW
        return ((clipped - low) / (high - low) - CT_MEAN) / CT_SD
    sd = float(clipped.std(unbiased=False))
    return (clipped - clipped.mean()) / (sd if sd > 0 else 1.0)


def clip_ct_or_mr(image: torch.Tensor) -> torch.Tensor:
    """Return a volume in its own unit, float32, its extremes cut off as in `ScaleCTorMRd`."""
    image = image.to(torch.float32)
    if is_ct(image):
        return image.clamp(*CT_WINDOW)
    rank = max(1, round(MR_QUANTILE * image.numel()))  # torch.quantile takes 2**24 values at most
    top = float(torch.kthvalue(image.as_subclass(torch.Tensor).flatten(), rank).values)
    return image.clamp(max=top)


def is_ct(image: torch.Tensor) -> bool:
    """Return whether a volume, as stored or clipped, is CT in Hounsfield units."""
    return float(image.min()) < CT_BELOW


def modality_of(image: torch.Tensor) -> str:
    """Return "CT" or "MR" for a volume that `scale_ct_or_mr` has scaled.

    Args:
        image: The whole scaled volume. In CT its smallest value is air, `CT_FLOOR`, or a little
            above it where the window of the file ends above -125; MR has mean 0 and SD 1.
    """
    above = float(image.min()) - CT_FLOOR
    if above < _TOLERANCE:
        return "CT" if above > -_TOLERANCE else "MR"
    if above > _MOST_ABOVE:
        return "MR"
    mean, sd = float(image.mean()), float(image.std(unbiased=False))
    standardised = abs(mean) < _STANDARDISED and (abs(sd - 1) < _STANDARDISED or sd == 0)
    return "MR" if standardised else "CT"
