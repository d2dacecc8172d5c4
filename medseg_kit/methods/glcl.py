"""GLCL's local contrast inside cross teaching, as the thesis compares it with MCSC.

Hu et al., "Semi-supervised contrastive learning for label-efficient medical image segmentation",
MICCAI 2021 (https://arxiv.org/abs/2109.07407). The thesis states neither weight nor
sampling: MCSC's groups and weight are taken; the global pre-training stage is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from medseg_kit.engines.semi_supervised import branches_of
from medseg_kit.engines.step import Losses
from medseg_kit.losses.local_contrast import local_contrast
from medseg_kit.methods.branch_pixels import BranchPixels
from medseg_kit.methods.patch_groups import foreground_groups, resize_labels

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

SAMPLINGS = ("block", "stride")


class LocalContrast:
    """The local contrastive term of GLCL, under a method with two branches and projections.

    A pixel's class is the ground truth where the image is labelled, else what the other branch
    says. Groups without foreground are left out.

    Args:
        scale: Scale of the features.
        sampling: How the pixels of a group are chosen: "block" takes one patch of every map of both
            branches, as MCSC; "stride" every ``stride``-th pixel of one image in both branches.
        patch: Side of a patch of "block" in pixels of the scale.
        stride: Distance of the pixels of "stride".
        num_groups: Groups of "block" a step, drawn at random; all of them if None.
        weight: Weight of the term; counts ``factor`` times.
        factor: 2: both branches' losses hold it.
        temperature: Divides the similarities.

    Raises:
        ValueError: For another ``sampling``.
    """

    def __init__(
        self,
        *,
        scale: str = "full",
        sampling: str = "block",
        patch: int = 19,
        stride: int = 4,
        num_groups: int | None = None,
        weight: float = 1e-3,
        factor: float = 2.0,
        temperature: float = 0.1,
    ) -> None:
        if sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {SAMPLINGS}, got {sampling!r}")
        self.scale = scale
        self.sampling = sampling
        self.patch = patch
        self.stride = stride
        self.num_groups = num_groups
        self.weight = weight
        self.factor = factor
        self.temperature = temperature

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> Losses:
        """Return the weighted mean over the groups that hold foreground; 0 where none does."""
        del engine
        branches = branches_of(batch)
        pixels = BranchPixels(branches, self.scale)
        labels = torch.stack([branch.target for branch in branches])  # (branches, N, H, W)
        if self.sampling == "block":
            numbers = pixels.numbers().flatten(0, 1)
            groups = foreground_groups(
                pixels, numbers, labels.flatten(0, 1), self.patch, self.num_groups
            )
        else:
            groups = self._strided(pixels, labels)
        losses = [
            local_contrast(features, classes, temperature=self.temperature)
            for features, classes in zip(*groups, strict=True)
        ]
        nothing = pixels.at(labels.new_empty(0)).sum()
        mean = torch.stack(losses).mean() if losses else nothing
        return {"contrast": self.weight * self.factor * mean}

    def _strided(
        self, pixels: BranchPixels, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features and classes of a group an image, see `foreground_groups`."""
        resized = resize_labels(labels.flatten(0, 1), pixels.size).unflatten(0, labels.shape[:2])
        steps = (..., slice(None, None, self.stride), slice(None, None, self.stride))
        numbers, classes = (
            maps[steps].transpose(0, 1).flatten(1) for maps in (pixels.numbers(), resized)
        )
        kept = (classes != 0).any(1)
        features = pixels.at(numbers[kept].flatten()).unflatten(0, numbers[kept].shape)
        return features, classes[kept]
