"""MCSC: cross teaching with a multi-scale cross contrastive loss.

Liu et al., "Multi-scale cross contrastive learning for semi-supervised medical image
segmentation", BMVC 2023 (https://arxiv.org/abs/2306.14293).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from medseg_kit.engines.semi_supervised import Branch, branches_of
from medseg_kit.engines.step import Losses, TimedTerm
from medseg_kit.losses.balanced_contrast import balanced_contrast
from medseg_kit.methods.branch_pixels import BranchPixels
from medseg_kit.methods.patch_groups import foreground_groups

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

PATCHES = {"full": 19, "eighth": 14}


class BalancedContrast(TimedTerm):
    """The contrastive term of MCSC, under a method that leaves two branches with projections.

    Groups of patches are drawn over both branches; a pixel's class is the ground truth where the
    image is labelled, else what the other branch says.

    Args:
        patches: Scale -> side of a patch in pixels of that scale, for 224 px.
        weight: Weight of the term, added to both branches' losses.
        factor: How often it counts in the joint loss (both branches, so 2).
        unlabelled_start: First steps, in which labelled images alone are contrasted (the
            public code's 3,000).
        balanced: Equal weight of classes; off for the unbalanced loss of the ablation (SCL).
        discard_background: No background anchors (DB of the ablation).
        crossed: Labels from the other branch; off for a branch's own (CroLab of the ablation).
        grid_minus_one: One patch fewer along each axis, as in the public code.
        num_groups: Groups a scale and step, drawn at random; all of them if None (the paper).
        temperature: Divides the similarities.
        precision: "full" or "bf16" products.
    """

    def __init__(  # noqa: PLR0913 - switches of the ablation, all by keyword
        self,
        patches: Mapping[str, int] | None = None,
        *,
        weight: float = 1e-3,
        factor: float = 2.0,
        unlabelled_start: int = 3000,
        balanced: bool = True,
        discard_background: bool = False,
        crossed: bool = True,
        grid_minus_one: bool = False,
        num_groups: int | None = None,
        temperature: float = 0.1,
        precision: str = "full",
    ) -> None:
        self.patches = dict(PATCHES if patches is None else patches)
        self.weight = weight
        self.factor = factor
        self.unlabelled_start = unlabelled_start
        self.balanced = balanced
        self.discard_background = discard_background
        self.crossed = crossed
        self.grid_minus_one = grid_minus_one
        self.num_groups = num_groups
        self.temperature = temperature
        self.precision = precision

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> Losses:
        """Return the weighted loss summed over the scales; 0 where no image counts."""
        del engine
        branches = branches_of(batch)
        counts = batch["labelled"]
        if self.global_step >= self.unlabelled_start:
            counts = torch.ones_like(counts)
        labels = torch.cat([self._labels(branch, batch)[counts] for branch in branches])
        losses = []
        for scale, patch in self.patches.items():
            pixels = BranchPixels(branches, scale)
            numbers = pixels.numbers()[:, counts].flatten(0, 1)
            losses.append(self._scale(pixels, numbers, labels, patch))
        return {"contrast": self.weight * self.factor * torch.stack(losses).sum()}

    def _labels(self, branch: Branch, batch: dict[str, Any]) -> torch.Tensor:
        if self.crossed:
            return branch.target
        own = branch.logits.detach().argmax(1)
        return torch.where(batch["labelled"][:, None, None], branch.target, own)

    def _scale(
        self, pixels: BranchPixels, numbers: torch.Tensor, labels: torch.Tensor, patch: int
    ) -> torch.Tensor:
        """Return the mean loss over the groups that hold foreground.

        Args:
            pixels: Features.
            numbers: Of the pixels of the images that count, ``(N, h, w)``.
            labels: Their classes at the image's size, ``(N, H, W)``.
            patch: Side of a patch.
        """
        nothing = pixels.at(numbers.new_empty(0)).sum()
        if len(numbers) == 0:
            return nothing
        features, classes = foreground_groups(
            pixels, numbers, labels, patch, self.num_groups, grid_minus_one=self.grid_minus_one
        )
        losses = [
            balanced_contrast(
                group,
                label,
                temperature=self.temperature,
                balanced=self.balanced,
                discard_background=self.discard_background,
                precision=self.precision,
            )
            for group, label in zip(features, classes, strict=True)
        ]
        return torch.stack(losses).mean() if losses else nothing
