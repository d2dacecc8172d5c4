"""A data set of slices for 2-D networks: volumes are cut once, as inference cuts them, and kept."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.utils.enums import CommonKeys
from torch.utils.data import Dataset

from medseg_kit.data.budgets import Budget, case_key, labelled_flags, labelled_slices
from medseg_kit.data.slice_store import SliceStore, build_store
from medseg_kit.data.volume_slices import VolumeSlices
from medseg_kit.transforms.pipelines import volume_preprocessing
from medseg_kit.typing import PathLike, UserError

logger = logging.getLogger(__name__)
NIFTI_SUFFIX = ".nii.gz"


class SliceDataset(Dataset[dict[str, Any]]):
    """All slices of a list of volumes as one tensor, with labels where there are any.

    Volumes go through `volume_preprocessing` and are cut and resized with the functions that
    `SliceInferer` uses, so training and inference see identical slices. They are read when the
    first slice is asked for, and stay in memory: 4 bytes a pixel, 1 byte a label.

    Args:
        data: Datalist dictionaries (see `load_datalist`) or plain ``{"image", "label"}``.
        image_size: Side S of the square slices, or ``(H, W)``.
        num_classes: ``1 + K``; larger label values are an error.
        window: As `volume_preprocessing`: intensities mapped to 0 and 1 (CT: Hounsfield units).
        intensity: As `volume_preprocessing`: scaling of the whole volume without a window.
        orientation: As `volume_preprocessing`: axis codes of the grid, the file's own if None.
            Fixed codes ("RAS") keep left and right apart when files differ.
        interpolation: How images are resized, "linear" or "nearest" (the papers' zoom of order
            0); the same as `SliceInferer`'s. Labels are always resized "nearest".
        direction: Direction of the body across which volumes are cut, see `slicing_axis`; as they
            were acquired if None. The same as `SliceInferer`'s.
        labelled: Label budget, see `labelled_flags` and `labelled_slices`.
        registered_labels: Folder with one registered label ``<case>.nii.gz`` a volume on its
            grid (`medseg register`), where there is one; else the cases' ``registered_label``.
        cache_dir: Folder that keeps the slices for the next run, by the hash of all inputs; the
            file is mapped into memory, so runs side by side share it. Not kept if None.

    Raises:
        UserError: For an empty list, an unusable budget, and when a volume is read: a file that
            is missing, no 3-D volume, not finite, or whose label does not fit.
    """

    def __init__(  # noqa: PLR0913 - the names of a configuration, all by keyword
        self,
        data: Sequence[Mapping[str, Any]],
        *,
        image_size: int | Sequence[int],
        num_classes: int,
        window: Sequence[float] | None = None,
        intensity: str = "minmax",
        orientation: str | None = None,
        interpolation: str = "linear",
        direction: str | None = None,
        labelled: Budget = None,
        registered_labels: PathLike | None = None,
        cache_dir: PathLike | None = None,
    ) -> None:
        if not data:
            raise UserError("the list of volumes is empty; check the data set folder")
        self.cases = [dict(case) for case in data]
        self.case_keys = [case_key(case) for case in self.cases]
        self.budget = labelled
        self.case_labelled = labelled_flags(self.cases, labelled)
        _check_annotated(self.cases, self.case_labelled)
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.slicing = VolumeSlices(
            volume_preprocessing(
                (CommonKeys.IMAGE,), orientation=orientation, window=window, intensity=intensity
            ),
            image_size=image_size,
            num_classes=num_classes,
            interpolation=interpolation,
            direction=direction,
        )
        self._registered = self._registered_files(registered_labels)

    @functools.cached_property
    def store(self) -> SliceStore:
        """All slices; reads the volumes at the first use."""
        return build_store(self.cases, self.slicing, self._registered, cache_dir=self.cache_dir)

    @functools.cached_property
    def labelled(self) -> torch.Tensor:
        """Which slices are labelled under the budget, ``(N,)`` bool."""
        depths = self.store.volume.bincount(minlength=len(self.cases)).tolist()
        flags: list[bool] = []
        for case, depth, known in zip(self.cases, depths, self.case_labelled, strict=True):
            flags += labelled_slices(case, depth, self.budget) if known else [False] * depth
        logger.info("labelled: %d slices of %d volumes", sum(flags), sum(self.case_labelled))
        return torch.tensor(flags)

    @functools.cached_property
    def _position(self) -> torch.Tensor:
        depths = self.store.volume.bincount()[self.store.volume]
        return (self.store.index + 0.5) / depths

    def __len__(self) -> int:
        return len(self.store.volume)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one slice, as `batch` does for several."""
        return {key: value[0] for key, value in self.batch(torch.tensor([index])).items()}

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return slices as they are, not augmented.

        Args:
            indices: ``(B,)``, positions among all slices.

        Returns:
            ``image`` ``(B, 1, H, W)`` float32; ``label`` ``(B, 1, H, W)`` uint8, zeros where the
            budget hides it; ``labelled`` ``(B,)`` bool; ``volume`` and ``slice`` ``(B,)`` int64;
            ``position`` ``(B,)`` float32, the slice's relative height in its volume from 0 to 1;
            where there are registered labels ``registered_label`` ``(B, 1, H, W)`` uint8 and
            ``has_registered`` ``(B,)`` bool.
        """
        store, labelled = self.store, self.labelled[indices]
        result = {
            CommonKeys.IMAGE: store.images[indices],
            CommonKeys.LABEL: store.labels[indices][:, None] * labelled[:, None, None, None],
            "labelled": labelled,
            "volume": store.volume[indices],
            "slice": store.index[indices],
            "position": self._position[indices],
        }
        if store.registered is not None:
            result["registered_label"] = store.registered[indices][:, None]
            has = torch.tensor([path is not None for path in self._registered])
            result["has_registered"] = has[result["volume"]]
        return result

    def _registered_files(self, folder: PathLike | None) -> list[Path | None]:
        if folder is None:
            named = [case.get("registered_label") for case in self.cases]
            return [None if path is None else Path(path) for path in named]
        if not Path(folder).is_dir():
            raise UserError(
                f"folder of registered labels {folder} does not exist; make it with "
                "`medseg register DATA --out OUT --labelled N`"
            )
        paths = [Path(folder) / f"{key}{NIFTI_SUFFIX}" for key in self.case_keys]
        found = [path if path.is_file() else None for path in paths]
        missing = [key for key, path in zip(self.case_keys, found, strict=True) if path is None]
        if len(missing) == len(found):
            raise UserError(
                f"{folder} holds no registered label of this list, e.g. {paths[0].name}"
            )
        self._tell_of_missing(found)
        return found

    def _tell_of_missing(self, found: Sequence[Path | None]) -> None:
        """Log how many unlabelled volumes have no registered label; most of them is a warning."""
        waiting = [
            (key, path)
            for key, path, known in zip(self.case_keys, found, self.case_labelled, strict=True)
            if not known
        ]
        missing = [key for key, path in waiting if path is None]
        if missing:
            most = 2 * len(missing) > len(waiting)
            logger.log(
                logging.WARNING if most else logging.INFO,
                "%d of %d unlabelled volumes have no registered label, for example %s",
                len(missing),
                len(waiting),
                ", ".join(missing[:5]),
            )


def _check_annotated(cases: Sequence[Mapping[str, Any]], labelled: Sequence[bool]) -> None:
    """Raise `UserError` for a label that leaves organs out: they are unknown, not background."""
    for case, used in zip(cases, labelled, strict=True):
        if used and not all(case.get("annotated", [])):
            raise UserError(
                f"the label {case['label']} does not annotate every organ of the network"
                f" ({case['annotated']}, background first); use data that annotate all of them"
            )
