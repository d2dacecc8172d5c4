"""MCSCv2: cross teaching with a certainty-guided, class-balanced contrast and a memory bank.

Chapter 5 of the thesis; written from it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from medseg_kit.engines.schedules import progress
from medseg_kit.engines.semi_supervised import Branch, branches_of
from medseg_kit.engines.step import Losses, TimedTerm, check_resumed
from medseg_kit.losses.prototype_contrast import FeatureBank, prototype_contrast
from medseg_kit.methods.branch_pixels import BranchPixels, random_subset
from medseg_kit.methods.patch_groups import resize_labels, resize_maps

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

SMALL = 1e-8
PUSH_SHARE = 0.25


@dataclass(frozen=True)
class Pixels:
    """All pixels of both branches at one scale, flat.

    Attributes:
        features: By number, with gradient.
        detached: ``(P, d)`` without gradient.
        classes: ``(P,)`` class of each pixel, P in all.
        probabilities: ``(P, C)`` of the branch that supplied the class.
        labelled: ``(P,)`` bool.
        certain: ``(P,)`` bool: labelled, or of low entropy.
    """

    features: BranchPixels
    detached: torch.Tensor
    classes: torch.Tensor
    probabilities: torch.Tensor
    labelled: torch.Tensor
    certain: torch.Tensor

    def centre(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the mean feature ``(d,)`` of the pixels in ``mask`` ``(P,)``, of unit length."""
        return F.normalize(mask.to(self.detached.dtype) @ self.detached, dim=0)


class CertaintyContrast(TimedTerm):
    """The contrastive term of MCSCv2, under a method with two branches and projections.

    A pixel's class and distribution come from the ground truth and its own branch where the image
    is labelled, else from the branch that teaches it.

    Args:
        num_classes: ``1 + K``.
        total_steps: Over which the uncertain share falls to 0, until a training step says its own.
        scales: Scales to contrast; each has its own bank.
        weight: Weight of the term; counts ``factor`` times.
        factor: 2: both branches' losses hold it.
        uncertain: Share of the unlabelled pixels that counts as uncertain at the start.
        confidence: What the probability of an anchor's most probable class has to exceed.
        low_rank: A class of this rank or later is unlikely, for labelled and certain pixels.
        high_rank: The same for uncertain pixels (2 on ACDC, 7 on Synapse).
        num_anchors: Most anchors a class.
        num_keys: Most negatives a class.
        bank_size: Features a class (60,000 in the paper); no bank if 0, keys come from the batch.
        temperature: Divides the similarities.
        background_anchors: Contrast the background, too (BA).
        crossed: Classes from the other branch; off for a branch's own (CroLab).
        balanced: Weigh negatives by class (Bal).
        certain_anchors: Confident, certain anchors only (APS).
        select_negatives: Choose negatives by rank (NS); else all pixels of other classes.
    """

    def __init__(  # noqa: PLR0913 - settings and switches of the ablation, all by keyword
        self,
        num_classes: int,
        total_steps: int,
        *,
        scales: Sequence[str] = ("full", "eighth"),
        weight: float = 1e-3,
        factor: float = 2.0,
        uncertain: float = 0.2,
        confidence: float = 0.9,
        low_rank: int = 1,
        high_rank: int = 2,
        num_anchors: int = 1000,
        num_keys: int = 500,
        bank_size: int = 60_000,
        temperature: float = 0.1,
        background_anchors: bool = True,
        crossed: bool = True,
        balanced: bool = True,
        certain_anchors: bool = True,
        select_negatives: bool = True,
    ) -> None:
        self.num_classes = num_classes
        self.total_steps = total_steps
        self.scales = tuple(scales)
        self.weight = weight
        self.factor = factor
        self.uncertain = uncertain
        self.confidence = confidence
        self.low_rank = low_rank
        self.high_rank = high_rank
        self.num_anchors = num_anchors
        self.num_keys = num_keys
        self.bank_size = bank_size
        self.temperature = temperature
        self.background_anchors = background_anchors
        self.crossed = crossed
        self.balanced = balanced
        self.certain_anchors = certain_anchors
        self.select_negatives = select_negatives
        self.banks: dict[str, FeatureBank] = {}

    @property
    def uncertain_share(self) -> float:
        """Share of the unlabelled pixels that counts as uncertain now."""
        return self.uncertain * (1 - progress(self.global_step, self.total_steps))

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> Losses:
        """Return the weighted loss summed over the scales."""
        del engine
        branches = branches_of(batch)
        losses = []
        for scale in self.scales:
            pixels = self._pixels(branches, batch["labelled"], scale)
            losses.append(self._scale(pixels, scale))
        return {"contrast": self.weight * self.factor * torch.stack(losses).sum()}

    def _pixels(self, branches: Sequence[Branch], labelled: torch.Tensor, scale: str) -> Pixels:
        """Return classes, distributions and certainty of all pixels at a scale."""
        features = BranchPixels(branches, scale)
        size, detached = features.size, features.all().float()
        with torch.no_grad():
            maps, classes = zip(*(self._teaching(b, labelled) for b in branches), strict=True)
            probabilities = resize_maps(torch.cat(maps), size).movedim(1, -1).flatten(0, 2)
            flat = resize_labels(torch.cat(classes), size).flatten()
            of_labelled = labelled.repeat(len(branches))[:, None, None].expand(-1, *size).flatten()
            entropy = -(probabilities * (probabilities + SMALL).log()).sum(1)
            certain = of_labelled | (entropy <= self._threshold(entropy[~of_labelled]))
        return Pixels(features, detached, flat, probabilities, of_labelled, certain)

    def _teaching(
        self, branch: Branch, labelled: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.crossed:
            return branch.teaching, branch.target
        own = branch.logits.detach().float().softmax(1)
        classes = torch.where(labelled[:, None, None], branch.target, own.argmax(1))
        return own, classes

    def _threshold(self, entropy: torch.Tensor) -> torch.Tensor:
        """Return the entropy above which the most uncertain share lies."""
        if len(entropy) == 0 or self.uncertain_share == 0:
            return torch.full((), torch.inf, device=entropy.device)
        keep = max(1, round((1 - self.uncertain_share) * len(entropy)))
        return entropy.kthvalue(keep).values

    def _scale(self, pixels: Pixels, scale: str) -> torch.Tensor:
        losses = []
        anchors = pixels.classes >= (0 if self.background_anchors else 1)
        if self.certain_anchors:
            anchors = anchors & pixels.certain & (pixels.probabilities.amax(1) > self.confidence)
        for value in range(self.num_classes):
            mask = anchors & (pixels.classes == value)
            found = mask.nonzero()[:, 0]
            keys, key_classes = self._keys(pixels, scale, value)
            if len(found) == 0 or len(keys) == 0:
                continue
            losses.append(
                prototype_contrast(
                    pixels.features.at(random_subset(found, self.num_anchors)),
                    pixels.centre(mask),
                    keys,
                    key_classes=key_classes if self.balanced else None,
                    temperature=self.temperature,
                )
            )
        nothing = pixels.features.at(pixels.classes.new_empty(0)).sum()
        return torch.stack(losses).mean() if losses else nothing

    def _keys(self, pixels: Pixels, scale: str, value: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return negatives of a class and their classes, after this batch's went into the bank."""
        found = self._negatives(pixels, value).nonzero()[:, 0]
        if not self.bank_size:
            chosen = random_subset(found, self.num_keys)
            return pixels.detached[chosen], pixels.classes[chosen]
        bank = self.banks.get(scale)
        if bank is None:
            dimension = pixels.detached.shape[1]
            bank = self.banks[scale] = FeatureBank(self.num_classes, self.bank_size, dimension)
        chosen = random_subset(found, round(PUSH_SHARE * self.bank_size))
        bank.push(value, pixels.detached[chosen], pixels.classes[chosen])
        return bank.draw(value, self.num_keys)

    def _negatives(self, pixels: Pixels, value: int) -> torch.Tensor:
        """Return which pixels are negatives of a class, ``(P,)`` bool."""
        others = pixels.classes != value
        if not self.select_negatives:
            return others
        rank = (pixels.probabilities > pixels.probabilities[:, value : value + 1]).sum(1)
        hard = pixels.labelled & (rank < self.low_rank)
        sure = ~pixels.labelled & pixels.certain & (rank >= self.low_rank)
        unsure = ~pixels.certain & (rank >= self.high_rank)
        return others & (hard | sure | unsure)

    def state_dict(self) -> dict[str, Any]:
        """Return the banks."""
        return {"banks": {scale: bank.state_dict() for scale, bank in self.banks.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.banks = {}
        for scale, content in state["banks"].items():
            check_resumed("bank_size", content["features"].shape[1], self.bank_size)
            self.banks[scale] = FeatureBank(*content["features"].shape)
            self.banks[scale].load_state_dict(content)
