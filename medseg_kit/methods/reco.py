"""ReCo's regional contrast inside cross teaching, as the thesis compares it with MCSC.

Liu et al., "Bootstrapping semantic segmentation with regional contrast", ICLR 2022
(https://arxiv.org/abs/2104.04465). The thesis states neither weight nor features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from medseg_kit.engines.semi_supervised import Branch, branches_of
from medseg_kit.engines.step import Losses
from medseg_kit.losses.regional_contrast import (
    class_prototypes,
    draw_pixels,
    negative_shares,
    regional_contrast,
)
from medseg_kit.methods.branch_pixels import BranchPixels
from medseg_kit.methods.patch_groups import resize_labels, resize_maps

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer


class RegionalContrast:
    """The contrastive term of ReCo, under a method that leaves branches with projections.

    Each branch is contrasted in itself; its classes are the ground truth of labelled images, else
    what the other branch says. Pixels that the other branch is unsure of do not count.

    Args:
        num_classes: ``1 + K``.
        scale: Scale of the features.
        weight: Weight of each branch's loss (ReCo alone: 1).
        confidence: Least probability of the class of an unlabelled pixel that counts.
        easy: A pixel to whose class its own branch gives this probability is no query.
        num_queries: Queries a class, drawn with replacement.
        num_keys: Negatives a query.
        temperature: Divides the similarities of pixels and of prototypes.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        scale: str = "full",
        weight: float = 1e-3,
        confidence: float = 0.7,
        easy: float = 0.97,
        num_queries: int = 256,
        num_keys: int = 512,
        temperature: float = 0.5,
    ) -> None:
        self.num_classes = num_classes
        self.scale = scale
        self.weight = weight
        self.confidence = confidence
        self.easy = easy
        self.num_queries = num_queries
        self.num_keys = num_keys
        self.temperature = temperature

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> Losses:
        """Return the weighted sum over the branches; 0 where at most one class is present."""
        del engine
        branches = branches_of(batch)
        losses = [self._branch(branch, batch["labelled"]) for branch in branches]
        return {"contrast": self.weight * torch.stack(losses).sum()}

    def _branch(self, branch: Branch, labelled: torch.Tensor) -> torch.Tensor:
        """Return the mean over the present classes that have a hard pixel."""
        pixels = BranchPixels([branch], self.scale)
        classes, valid, hard = self._pixels(branch, labelled, pixels.size)
        number, classes = valid.nonzero()[:, 0], classes[valid]
        nothing = pixels.at(number[:0]).sum()
        features = pixels.all().float()[number]
        present = torch.bincount(classes, minlength=self.num_classes) > 0
        if int(present.sum()) < 2:
            return nothing
        prototypes = class_prototypes(features, classes, self.num_classes)
        losses = []
        for value in present.nonzero()[:, 0].tolist():
            found = number[(classes == value) & hard[valid]]
            if len(found) == 0:
                continue
            chosen = torch.randint(len(found), (self.num_queries,)).to(found.device)
            shares = negative_shares(prototypes, present, value, temperature=self.temperature)
            keys = draw_pixels(classes, shares, self.num_queries * self.num_keys)
            losses.append(
                regional_contrast(
                    pixels.at(found[chosen]),
                    prototypes[value],
                    features[keys].unflatten(0, (self.num_queries, self.num_keys)),
                    temperature=self.temperature,
                )
            )
        return torch.stack(losses).mean() if losses else nothing

    @torch.no_grad()
    def _pixels(
        self, branch: Branch, labelled: torch.Tensor, size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return class, whether it counts and whether it is hard, of each pixel, ``(P,)`` each."""
        classes = resize_labels(branch.target, size)
        own = resize_maps(branch.logits.float().softmax(1), size).gather(1, classes[:, None])[:, 0]
        sure = resize_maps(branch.teaching, size).amax(1) >= self.confidence
        valid = labelled[:, None, None] | sure
        return classes.flatten(), valid.flatten(), (own < self.easy).flatten()
