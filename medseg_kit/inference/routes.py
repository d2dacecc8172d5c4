"""Two ways from a volume to the network and back: the lean one and the bundle's own transforms.

Both give the same label map. The lean one is taken when the pipelines are the package's own.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscrete, AsDiscreted, Compose, SaveImage, SaveImaged
from monai.utils.enums import CommonKeys

from medseg_kit.inference.cases import Case
from medseg_kit.inference.grid import Grid
from medseg_kit.inference.inversion import label_map, probabilities, winners
from medseg_kit.inference.lean import prepare
from medseg_kit.inference.reading import Volume
from medseg_kit.transforms.pipelines import VolumePostprocessing, VolumePreprocessing

logger = logging.getLogger(__name__)


@dataclass
class Answer:
    """What the network says about a volume, on the network's grid.

    Attributes:
        logits: ``(C, H, W, D)``.
        labels: Winners ``(H, W, D)`` uint8.
        leads: Lead of the winner over the second class in logits, ``(H, W, D)``.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    leads: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor) -> Answer:
        """Return the answer with its winners."""
        return cls(logits, *winners(logits))


class Route(Protocol):
    """From a volume to the network's input, and from its answer to the file's grid."""

    name: str

    def prepare(self, case: Case, volume: Volume) -> tuple[torch.Tensor, Any]:
        """Return the input ``(C, H, W, D)`` and what `finish` needs to know about it."""

    def finish(self, answer: Answer, state: Any) -> np.ndarray:
        """Return the label map ``(H, W, D)`` uint8 on the file's grid."""

    def probabilities(self, answer: Answer, state: Any) -> Iterator[np.ndarray]:
        """Yield each class's probability ``(H, W, D)`` on the file's grid."""


class LeanRoute:
    """Does what the package's factories describe, without their transforms.

    Args:
        preprocessing: Remembers the parameters.
        postprocessing: Its cleaning of the label map is done.
    """

    name = "lean"

    def __init__(
        self, preprocessing: VolumePreprocessing, postprocessing: VolumePostprocessing
    ) -> None:
        self.preprocessing = preprocessing
        self.cleaning = postprocessing.cleaning

    def prepare(self, case: Case, volume: Volume) -> tuple[MetaTensor, Grid]:
        """Return the network's input and its place in the file's grid."""
        del case
        return prepare(volume, self.preprocessing)

    def finish(self, answer: Answer, state: Grid) -> np.ndarray:
        """Return the label map on the file's grid."""
        labels = torch.from_numpy(label_map(answer.logits, answer.labels, answer.leads, state))
        cleaned: torch.Tensor = self.cleaning({CommonKeys.PRED: labels[None]})[CommonKeys.PRED]
        return cleaned[0].numpy()

    def probabilities(self, answer: Answer, state: Grid) -> Iterator[np.ndarray]:
        """Yield each class's probability on the file's grid."""
        return probabilities(answer.logits, state)


class ComposeRoute:
    """Runs the bundle's own transforms; savers among them are left out.

    Args:
        preprocessing: From ``{"image": path}`` to the network's input.
        postprocessing: From ``pred`` logits to a label map of one channel on the file's grid.
    """

    name = "transforms"

    def __init__(self, preprocessing: Compose, postprocessing: Compose) -> None:
        self.preprocessing = preprocessing
        steps = [
            step
            for step in postprocessing.transforms
            if not isinstance(step, (SaveImage, SaveImaged))
        ]
        self.postprocessing = Compose(steps)
        discrete = (AsDiscrete, AsDiscreted)
        first = next((i for i, step in enumerate(steps) if isinstance(step, discrete)), None)
        self.to_probabilities = None if first is None else Compose(steps[:first])

    def prepare(self, case: Case, volume: Volume) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the network's input and the dictionary that holds it.

        A DICOM series is handed to the transforms as a temporary NIfTI file.
        """
        if not case.is_series:
            data = self.preprocessing({CommonKeys.IMAGE: str(case.files[0])})
            return data[CommonKeys.IMAGE], data
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.nii"
            nib.save(nib.Nifti1Image(volume.array, volume.affine), path)
            data = self.preprocessing({CommonKeys.IMAGE: str(path)})
        return data[CommonKeys.IMAGE], data

    def finish(self, answer: Answer, state: dict[str, Any]) -> np.ndarray:
        """Return the label map on the file's grid.

        Raises:
            ValueError: If the transforms do not return one channel.
        """
        result = self.postprocessing({**state, CommonKeys.PRED: answer.logits})[CommonKeys.PRED]
        if result.shape[0] != 1:
            raise ValueError(
                f"postprocessing returned {result.shape[0]} channels; it has to end with an argmax "
                "to one"
            )
        return torch.as_tensor(result[0]).as_subclass(torch.Tensor).to(torch.uint8).cpu().numpy()

    def probabilities(self, answer: Answer, state: dict[str, Any]) -> Iterator[np.ndarray]:
        """Yield each class's probability on the file's grid.

        Raises:
            ValueError: If no step of the transforms makes labels of probabilities.
        """
        if self.to_probabilities is None:
            raise ValueError(
                "save_probabilities needs an AsDiscreted step in postprocessing: what comes before "
                "it is saved"
            )
        result = self.to_probabilities({**state, CommonKeys.PRED: answer.logits.clone()})
        for probability in result[CommonKeys.PRED]:
            yield torch.as_tensor(probability).as_subclass(torch.Tensor).cpu().numpy()


def choose_route(preprocessing: Compose, postprocessing: Compose) -> Route:
    """Return the lean route for the package's own pipelines, else the transforms; logs which.

    Args:
        preprocessing: Of the bundle.
        postprocessing: Of the bundle.
    """
    if (
        isinstance(preprocessing, VolumePreprocessing)
        and isinstance(postprocessing, VolumePostprocessing)
        and postprocessing.preprocessing is preprocessing
        and preprocessing.keys == (CommonKeys.IMAGE,)
    ):
        logger.info("lean route: the pipelines are the package's own")
        return LeanRoute(preprocessing, postprocessing)
    logger.info(
        "the bundle's transforms run as they are: preprocessing (%s) and postprocessing (%s) are "
        "not both the package's factories",
        type(preprocessing).__name__,
        type(postprocessing).__name__,
    )
    return ComposeRoute(preprocessing, postprocessing)
