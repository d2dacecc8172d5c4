"""CCT-R: cross teaching with registered labels and registration-enhanced positives.

Chapter 6 of the thesis: registration supervision loss (equation 6.7), supervised contrast (6.3 to
6.5) and positives that other volumes' features join through registration (6.12 and 6.13).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional as F

from medseg_kit.engines.schedules import Schedule, constant
from medseg_kit.engines.semi_supervised import Branch, branches_of
from medseg_kit.engines.step import Losses, TimedTerm, check_resumed
from medseg_kit.losses.prototype_contrast import prototype_contrast
from medseg_kit.losses.soft_dice import DiceCrossEntropy
from medseg_kit.methods.branch_pixels import BranchPixels, random_subset
from medseg_kit.methods.feature_maps import FeatureMaps, canonical_pixels, unaugmented
from medseg_kit.methods.patch_groups import resize_labels

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer


class PointMaps(Protocol):
    """What of `medseg_kit.registration.mapping.RegistrationMaps` is used here."""

    @property
    def has(self) -> torch.Tensor:
        """Whether there is a registration from a volume to another, ``(V, V)`` bool."""

    def map_points(
        self, volume_from: Any, volume_to: Any, points: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map voxels; also whether each is valid."""

    def pixels_to_voxels(
        self, volume: Any, slices: torch.Tensor, pixels: torch.Tensor, *, size: Sequence[int]
    ) -> torch.Tensor:
        """Return voxels of pixels."""

    def voxels_to_pixels(
        self, volume: Any, voxels: torch.Tensor, *, size: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return slices and pixels of voxels."""


class RegistrationSupervision(TimedTerm):
    """Registered labels as the target of unlabelled images, for every branch (RSL).

    Args:
        weight: Weight of the term.
        schedule: Factor on it over the steps, for example `linear(1, 0)`; constant if None.
    """

    def __init__(self, weight: float = 1.0, *, schedule: Schedule | None = None) -> None:
        self.weight = weight
        self.schedule = constant() if schedule is None else schedule
        self.loss = DiceCrossEntropy(1.0, 1.0)

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> Losses:
        """Return the loss; nothing where no unlabelled image has a registered label."""
        del engine
        factor = self.weight * self.schedule(self.global_step, self.total_steps)
        if "registered_label" not in batch:
            return {}
        chosen = batch["has_registered"] & ~batch["labelled"]
        if not bool(chosen.any()):
            return {}
        label = batch["registered_label"][chosen]
        branches = branches_of(batch)
        losses = [self.loss(branch.logits[chosen], label) for branch in branches]
        return {"registration": factor * torch.stack(losses).sum()}


class SupervisedContrast:
    """Contrast of confident pixels with their class' centre, and with registered features (REPS).

    Anchors and negatives come from the batch; classes are ground truth or the teaching branch's. A
    positive is the mean of its class in the branch; with `maps` half of it is the mean of what
    other volumes show at the registered place, as far as their slices are in the bank.

    Args:
        num_classes: ``1 + K``.
        scale: Scale of the features.
        weight: Weight of the term; counts ``factor`` times.
        factor: 2: both branches' losses hold it, the mean over both branches.
        confidence: What the most probable class of an anchor has to exceed (the equation's p; of a
            labelled pixel that may be another class than the true one).
        num_anchors: Most anchors a class.
        num_keys: Most negatives a class.
        temperature: Divides the similarities.
        maps: Point maps between the volumes; without them there is no REPS.
        bank_size: Feature maps kept a branch (a fifth of the training slices).
        share: Weight of the registered part of a positive.
        exclude_self: Leave an anchor out of its own class' mean (the text of the thesis says
            "all other pixels", its equation averages all).
        num_volumes: Other volumes looked at a step, drawn at random from those to which an image of
            the batch is registered (ours); all of them if None (the thesis).
    """

    def __init__(  # noqa: PLR0913 - settings, all by keyword
        self,
        num_classes: int,
        *,
        scale: str = "quarter",
        weight: float = 1e-3,
        factor: float = 2.0,
        confidence: float = 0.5,
        num_anchors: int = 1000,
        num_keys: int = 500,
        temperature: float = 0.1,
        maps: PointMaps | None = None,
        bank_size: int = 0,
        share: float = 0.5,
        exclude_self: bool = False,
        num_volumes: int | None = 8,
    ) -> None:
        self.num_classes = num_classes
        self.scale = scale
        self.weight = weight
        self.factor = factor
        self.confidence = confidence
        self.num_anchors = num_anchors
        self.num_keys = num_keys
        self.temperature = temperature
        self.maps = maps
        self.bank_size = bank_size
        self.share = share
        self.exclude_self = exclude_self
        self.num_volumes = num_volumes
        self.banks = [FeatureMaps(bank_size) for _ in range(2)] if maps is not None else []

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> Losses:
        """Return the weighted mean over the branches' classes; then fill the banks."""
        del engine
        branches = branches_of(batch)
        losses = [self._branch(branch, batch, index) for index, branch in enumerate(branches)]
        for bank, branch in zip(self.banks, branches, strict=False):
            with torch.no_grad():
                features = branch.projected[self.scale].maps()
            maps = unaugmented(features, batch["matrix"], batch["image"].shape[-2:])
            bank.put(batch["volume"], batch["slice"], maps)
        return {"contrast": self.weight * self.factor * torch.stack(losses).mean()}

    def _branch(self, branch: Branch, batch: dict[str, Any], index: int) -> torch.Tensor:
        pixels = BranchPixels([branch], self.scale)
        size, flat = pixels.size, pixels.all().float()
        classes = resize_labels(branch.target, size).flatten()
        top = branch.teaching.amax(1, keepdim=True)
        top = F.interpolate(top, size, mode="bilinear", align_corners=False).flatten()
        losses = []
        for value in range(self.num_classes):
            anchors = ((classes == value) & (top > self.confidence)).nonzero()[:, 0]
            others = (classes != value).nonzero()[:, 0]
            if len(anchors) == 0 or len(others) == 0:
                continue
            of_class = anchors
            anchors, others = (
                random_subset(anchors, self.num_anchors),
                random_subset(others, self.num_keys),
            )
            positives = self._centres(flat, of_class, anchors)
            if self.banks:
                positives = self._enhanced(positives, anchors, size, batch, index)
            losses.append(
                prototype_contrast(
                    pixels.at(anchors),
                    F.normalize(positives, dim=1),
                    flat[others],
                    temperature=self.temperature,
                )
            )
        return torch.stack(losses).mean() if losses else pixels.at(classes.new_empty(0)).sum()

    def _centres(
        self, flat: torch.Tensor, of_class: torch.Tensor, anchors: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean feature of a class for each anchor, ``(n, d)``."""
        if self.exclude_self and len(of_class) > 1:
            return (flat[of_class].sum(0) - flat[anchors]) / (len(of_class) - 1)
        return flat[of_class].mean(0).expand(len(anchors), -1)

    @torch.no_grad()
    def _enhanced(
        self,
        centre: torch.Tensor,
        anchors: torch.Tensor,
        size: tuple[int, int],
        batch: dict[str, Any],
        index: int,
    ) -> torch.Tensor:
        """Return each anchor's positive with what other volumes show at its place, ``(n, d)``."""
        maps, bank = self.maps, self.banks[index]
        if maps is None or not len(bank):
            return centre
        full = tuple(batch["image"].shape[-2:])
        which = anchors // (size[0] * size[1])
        pixels = canonical_pixels(anchors, size, full, batch["matrix"][which])
        volume, slices = batch["volume"][which], batch["slice"][which]
        voxels = maps.pixels_to_voxels(volume, slices, pixels, size=full)
        total, count = torch.zeros_like(centre), centre.new_zeros(len(centre))
        for other in self._others(maps.has[volume.unique()].any(0), bank):
            mapped, valid = maps.map_points(volume, other, voxels)
            place, found = maps.voxels_to_pixels(other, mapped, size=full)
            sampled, there = bank.sample(other, place, found, full)
            valid = valid & there & (volume != other)
            total += torch.where(valid[:, None], sampled, 0.0)
            count += valid
        registered = total / count.clamp(min=1)[:, None]
        mixed = (1 - self.share) * centre + self.share * registered
        return torch.where((count > 0)[:, None], mixed, centre)

    def _others(self, registered: torch.Tensor, bank: FeatureMaps) -> list[int]:
        """Return the volumes to look at: of which slices are kept, and that can be reached."""
        reached = set(registered.nonzero()[:, 0].tolist())
        volumes = [volume for volume in bank.volumes() if volume in reached]
        order = torch.randperm(len(volumes))[: self.num_volumes].tolist()
        return [volumes[index] for index in order]

    def state_dict(self) -> dict[str, Any]:
        """Return the banks."""
        return {"banks": [bank.state_dict() for bank in self.banks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        check_resumed("use of registrations", bool(state["banks"]), bool(self.banks))
        for bank, content in zip(self.banks, state["banks"], strict=True):
            bank.load_state_dict(content)
