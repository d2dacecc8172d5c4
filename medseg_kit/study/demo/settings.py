"""What a demonstration trains: bundle, sizes and rounds, chosen so that two cores need minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """One demonstration; the same sizes, steps and learning rate hold for all its models.

    Attributes:
        title: Headline of the page.
        bundle: Name of the bundle.
        patients: What the patients are called in texts, for example "synthetic patients".
        origin: Where they come from, as a sentence.
        rounds: Rounds of a federation.
        local_steps: Optimiser steps of a site in a round.
        val_interval: Rounds from one validation to the next; `rounds` is a multiple of it.
        shared: Values by id for training and inference alike.
        training: Further values by id for training.
        channels: Features a level of every network, all different (MONAI's residual units have
            other keys where they do not change); the bundle's own if None.
        min_cases: Fewest validation cases whose mean may leave a site.
        num_sites: Number of sites.
        num_organs: Number of organs.
        patients_per_site: Synthetic patients of each site.
        num_outside: Synthetic outside patients.
        size: Voxels of a synthetic image.
        window: Intensities drawn black and white in the pictures; automatic if None.
    """

    title: str
    bundle: str
    patients: str
    origin: str
    rounds: int
    local_steps: int
    val_interval: int
    shared: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[int, ...] | None = None
    min_cases: int = 5
    num_sites: int = 4
    num_organs: int = 4
    patients_per_site: int = 8
    num_outside: int = 6
    size: tuple[int, int, int] = (64, 64, 64)
    window: tuple[float, float] | None = None

    @property
    def site_steps(self) -> int:
        """Optimiser steps of one site in all rounds."""
        return self.rounds * self.local_steps

    def training_overrides(self) -> dict[str, Any]:
        """Return the values by id that every training is built with."""
        return {
            **self.inference_overrides(),
            **self.training,
            "steps_per_epoch": self.local_steps,
            "val_interval": self.val_interval,
            "save_checkpoint": False,
        }

    def inference_overrides(self) -> dict[str, Any]:
        """Return the values by id that training and inference share."""
        widths = {} if self.channels is None else {"network_def#channels": list(self.channels)}
        return {**self.shared, **widths}


PHANTOMS = Settings(
    title="Four hospitals, one model: a federation on synthetic patients",
    bundle="abdomen_ct_segviz",
    patients="synthetic patients",
    origin="All patients are synthetic: drawn by medseg_kit.data.phantoms from a seed. Nothing "
    "here says anything about real anatomy or real accuracy.",
    rounds=25,
    local_steps=8,
    val_interval=5,
    shared={"spacing": [9.0, 9.0, 9.0], "roi_size": [48, 32, 32]},
    training={"amp": "off", "learning_rate": 0.003},
    channels=(8, 16, 32, 48, 64),
    min_cases=1,
    window=(-125, 275),
)

HIPPOCAMPUS = Settings(
    title="Two hospitals, one model: a federation on the hippocampus volumes of Task04",
    bundle="hippocampus_mr_segviz",
    patients="Task04 patients",
    origin="Real brain MR crops of the Medical Segmentation Decathlon, Task04 hippocampus "
    "(CC BY-SA 4.0). The outside patients are the held-out test cases of the same collection.",
    rounds=12,
    local_steps=8,
    val_interval=3,
    training={"amp": "off", "batch_size": 2},
    num_sites=2,
    num_organs=2,
)

SETTINGS: Mapping[str, Settings] = {"phantoms": PHANTOMS, "hippocampus": HIPPOCAMPUS}
