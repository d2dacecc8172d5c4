"""Pseudo-labels without labels: the superpixels of every slice inside the body, kept as files.

ALPNet (Ouyang et al. 2020, https://arxiv.org/abs/2007.09886): Felzenszwalb's segmentation of the
clipped slices, its "middle" size, inside a mask of the body.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import nibabel as nib
import numpy as np
import torch
from monai.utils.enums import CommonKeys
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.segmentation import felzenszwalb

from medseg_kit.data.budgets import case_key
from medseg_kit.data.volume_slices import VolumeSlices
from medseg_kit.data.volumes import file_sha256
from medseg_kit.files import write_bytes, write_json
from medseg_kit.transforms.modality import CT_BELOW, CT_WINDOW
from medseg_kit.transforms.pipelines import volume_preprocessing
from medseg_kit.typing import PathLike, UserError

logger = logging.getLogger(__name__)

FOLDER = "superpixels"  # in a prepared data set
FORMAT = 3
_DIGEST = 12  # characters of an image's SHA-256 in the name of its file
OTSU = "otsu"
LEVELS = 255.0  # CT is brought to 0..255 before it is cut up


@dataclass(frozen=True)
class Superpixels:
    """How slices are cut up.

    Attributes:
        min_size: Smallest superpixel in pixels (400 for slices of 256 x 256).
        sigma: SD of the smoothing before, in pixels.
        scale: Felzenszwalb's preference for large superpixels.
        ct_body: What lies above is body in CT, of 0 to 255 in the window of [-125, 275] HU.
        mr_body: The same in MR, in the units of the file (50 for CHAOS T2 in ALPNet), or "otsu":
            Otsu's threshold of each volume.
    """

    min_size: int = 400
    sigma: float = 1.0
    scale: float = 1.0
    ct_body: float = 1e-4
    mr_body: float | str = OTSU

    def __post_init__(self) -> None:
        """Refuse a threshold that is none."""
        if isinstance(self.mr_body, str) and self.mr_body != OTSU:
            raise ValueError(f"mr_body must be a number or {OTSU!r}, got {self.mr_body!r}")

    def of(self, slices: np.ndarray) -> np.ndarray:
        """Return the superpixels of one volume's slices, ``(N, H, W)`` uint16.

        Each slice counts them from 1; 0 is outside the body.

        Args:
            slices: ``(N, H, W)``, clipped (`clip_ct_or_mr`): Hounsfield units, or MR as stored.
        """
        levels, threshold = slices.astype(np.float64), self.mr_body
        if float(slices.min()) < CT_BELOW:
            low, high = CT_WINDOW
            levels, threshold = (levels - low) / (high - low) * LEVELS, self.ct_body
        body = body_mask(levels, threshold)
        result = np.zeros(slices.shape, np.uint16)
        for index in body.any(axis=(1, 2)).nonzero()[0]:
            inside = np.where(body[index], self.pieces(levels[index]) + 1, 0)
            values, numbers = np.unique(inside, return_inverse=True)
            result[index] = (numbers + (values[0] != 0)).reshape(inside.shape)
        return result

    def pieces(self, plane: np.ndarray) -> np.ndarray:
        """Return the superpixels of one slice ``(H, W)``, counted from 0, body or not.

        Args:
            plane: Values of about 0 to 255.
        """
        found: np.ndarray = felzenszwalb(
            plane, scale=self.scale, sigma=self.sigma, min_size=self.min_size
        )
        return found


def body_mask(volume: np.ndarray, threshold: float | str) -> np.ndarray:
    """Return the largest connected part of each slice above a threshold, its holes filled.

    Args:
        volume: ``(N, H, W)``.
        threshold: A value, or "otsu".
    """
    value = threshold
    if isinstance(threshold, str):
        value = threshold_otsu(volume) if np.ptp(volume) > 0 else np.inf
    return np.stack([_largest_part(plane) for plane in volume > value])


def _largest_part(plane: np.ndarray) -> np.ndarray:
    """Return the largest connected part of ``(H, W)`` bool without holes."""
    parts, number = ndimage.label(plane)
    if not number:
        return plane
    part = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    filled: np.ndarray = ndimage.binary_fill_holes(part)
    return filled


class SuperpixelFiles:
    """Superpixels of cases as files ``<case>_<digest>.nii.gz``, made when they are missing.

    The folder's name is the digest of everything they depend on beside the image, whose own digest
    ends the name of the file; so a change makes new ones, a killed run continues, and the files of
    several sites may lie in one folder, whatever their patients are called.

    Args:
        folder: Where the folder is made, such as ``DATA/superpixels``.
        settings: How slices are cut up.
        image_size: Side S of the square slices, or ``(H, W)``; those of the network.
        orientation: Axis codes of the grid, as for training.
        direction: Direction across which slices are cut, as for training.
    """

    def __init__(
        self,
        folder: PathLike,
        settings: Superpixels,
        *,
        image_size: int | Sequence[int],
        orientation: str | None,
        direction: str | None = None,
    ) -> None:
        self.settings = settings
        self.slicing = VolumeSlices(
            volume_preprocessing(
                (CommonKeys.IMAGE,), orientation=orientation, intensity="clip_ct_or_mr"
            ),
            image_size=image_size,
            num_classes=2,
            direction=direction,
        )
        parameters = {"format": FORMAT, **asdict(settings), **self.slicing.parameters}
        text = json.dumps(parameters, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:12]
        self.parameters = parameters

    def path(self, case: Mapping[str, Any]) -> Path:
        """Return the file of a case."""
        digest = file_sha256(Path(case[CommonKeys.IMAGE]))[:_DIGEST]
        return self.folder / f"{case_key(case)}_{digest}.nii.gz"

    def read(self, case: Mapping[str, Any]) -> torch.Tensor:
        """Return the superpixels of a case that has them, ``(N, H, W)`` int32."""
        image = nib.nifti1.Nifti1Image.from_filename(self.path(case))
        return torch.from_numpy(np.asanyarray(image.dataobj).astype(np.int32)).movedim(2, 0)

    def missing(self, cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the cases without superpixels of their present image."""
        return [case for case in cases if not self.path(case).is_file()]

    def make(
        self,
        cases: Sequence[Mapping[str, Any]],
        *,
        jobs: int = 1,
        on_case: Callable[[], Any] = lambda: None,
    ) -> int:
        """Make what is missing; return the number of cases that were made.

        Args:
            cases: Datalist dictionaries.
            jobs: Processes; -1 for one a core.
            on_case: Called after each case.

        Raises:
            UserError: If a volume cannot be read or has no body above the threshold.
        """
        wanted = self.missing(cases)
        if wanted:
            write_json(self.folder / "parameters.json", self.parameters)
        work = (joblib.delayed(self._make_one)(case) for case in wanted)
        for _ in joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(work):
            on_case()
        if wanted:
            logger.info("superpixels of %d volumes: %s", len(wanted), self.folder)
        return len(wanted)

    def _make_one(self, case: Mapping[str, Any]) -> None:
        images, _, _ = self.slicing.cut({CommonKeys.IMAGE: case[CommonKeys.IMAGE]})
        pieces = self.settings.of(images[:, 0].numpy())
        if not pieces.any():
            raise UserError(
                f"{case[CommonKeys.IMAGE]}: nothing lies above the threshold of the body"
                f" ({self.settings.mr_body}); set mr_body, for example to otsu"
            )
        image = nib.nifti1.Nifti1Image(np.moveaxis(pieces, 0, 2), np.eye(4))
        write_bytes(self.path(case), gzip.compress(image.to_bytes(), compresslevel=1))
