"""What a batch prediction can be told beside its network, transforms, input and output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_kit.typing import PathLike


@dataclass(frozen=True)
class PredictOptions:
    """Options of the batch predictor; `inference.yaml` holds them.

    Attributes:
        checkpoint: Weights that are loaded strictly; the network's own are used if None.
        device: ``"auto"``, or the name of a device.
        organs: Names of the labels 1, 2, ...; ``label 1`` and so on if None.
        section: Section of a datalist; all of them if None.
        save_probabilities: Also write each class's probability (4-D, float32, large).
        overwrite: Predict again also what is finished.
        num_parts: Number of jobs that share the work.
        part_id: Which of them this is, from 0.
        prefetch: Cases read ahead; each costs the memory of a volume.
        progress: Show a progress bar.
    """

    checkpoint: PathLike | None = None
    device: str | torch.device = "auto"
    organs: Sequence[str] | None = None
    section: str | None = None
    save_probabilities: bool = False
    overwrite: bool = False
    num_parts: int = 1
    part_id: int = 0
    prefetch: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        if self.prefetch < 1:
            raise ValueError(f"prefetch must be at least 1, got {self.prefetch}")

    def label_names(self, num_classes: int) -> list[str]:
        """Return the names of the labels 1, 2, ... of a network.

        Args:
            num_classes: Channels of the network's answer, background included.

        Raises:
            ValueError: If ``organs`` has another number of names.
        """
        if self.organs is None:
            return [f"label {value}" for value in range(1, num_classes)]
        if len(self.organs) != num_classes - 1:
            raise ValueError(
                f"the network answers with {num_classes} classes (background and "
                f"{num_classes - 1} labels), but organs names {list(self.organs)}"
            )
        return list(self.organs)
