"""DeepAtlas, approximately: a segmentation and a registration network teach each other.

Xu and Niethammer, "DeepAtlas: joint semi-supervised learning of image registration and
segmentation", MICCAI 2019 (https://arxiv.org/abs/1904.08465). The thesis re-implemented it in 2-D
without details. Ours pairs slices of one batch at about the same relative height,
has weights of 1, and updates both networks at every step, each with the other held fixed by a
stop-gradient, where DeepAtlas updates them in turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys
from torch.nn import functional as F

from medseg_kit.engines.semi_supervised import SemiSupervisedStep, count_labelled
from medseg_kit.engines.step import Losses
from medseg_kit.losses.soft_dice import soft_overlap

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

KERNEL = 9  # side of the window of the local correlation, in pixels
SMALL = 1e-5


class DeepAtlasStep(SemiSupervisedStep):
    """Supervised loss, registration of slice pairs, and the overlap of what the pairs show.

    Needs a `DeepAtlasNetwork`. The overlap compares a slice with its warped partner, ground truth
    where there is any and else the segmentation; pairs without ground truth have none. A site
    without labels trains the registration alone; one with a single volume the segmentation alone.

    Args:
        similarity: Weight of the pairs' local cross-correlation.
        smoothness: Weight of the displacement's squared gradient.
        anatomy: Weight of the overlap, in both networks' losses.
        **options: Those of `SemiSupervisedStep`.
    """

    def __init__(
        self,
        *,
        similarity: float = 1.0,
        smoothness: float = 1.0,
        anatomy: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.similarity = similarity
        self.smoothness = smoothness
        self.anatomy = anatomy

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the logits ``(B, C, H, W)`` and the losses of both networks."""
        partner, paired = partners(batch)
        output = engine.network(batch[CommonKeys.IMAGE], partner)
        logits, displacement = output["logits"], output["displacement"].float()
        # both networks stay in the graph, as data-parallel training wants
        losses: Losses = self.supervised(logits, batch) or self.absent(logits)
        if bool(paired.any()):
            losses |= self._pairs(batch, logits, displacement, partner, paired)
        else:
            losses["no_pairs"] = displacement[:0].sum()
        return logits, losses

    def step_size(self, batch: dict[str, Any]) -> float:
        """Return 1: registration needs no labels, and has no ramp."""
        del batch
        return 1.0

    def _pairs(
        self,
        batch: dict[str, Any],
        logits: torch.Tensor,
        displacement: torch.Tensor,
        partner: torch.Tensor,
        paired: torch.Tensor,
    ) -> Losses:
        """Return what the pairs cost, by name."""
        fixed, moving = paired.nonzero()[:, 0], partner[paired]
        image, motion = batch[CommonKeys.IMAGE], displacement[paired]
        moved = warped(image[moving], motion)
        losses = {
            "similarity": self.similarity * local_decorrelation(moved, image[fixed].float()),
            "smoothness": self.smoothness * roughness(motion),
        }
        labelled = batch["labelled"]
        known = labelled[fixed] | labelled[moving]
        if bool(known.any()):
            shown = structures(batch, logits)
            one, other, motion = shown[fixed[known]], shown[moving[known]], motion[known]
            self_taught = soft_overlap(warped(other, motion.detach()), one)
            registered = soft_overlap(warped(other.detach(), motion), one.detach())
            losses["anatomy"] = self.anatomy * (self_taught + registered)
        return losses


def warped(maps: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Return maps ``(B, C, H, W)`` sampled at each pixel's displaced place, bilinear.

    Args:
        maps: ``(B, C, H, W)``.
        displacement: ``(B, 2, H, W)``, rows then columns in pixels.
    """
    height, width = maps.shape[2:]
    rows = torch.arange(height, device=maps.device)[:, None] + displacement[:, 0]
    columns = torch.arange(width, device=maps.device) + displacement[:, 1]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    return F.grid_sample(maps.float(), grid, "bilinear", "border", align_corners=False)


def local_decorrelation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return 1 minus the mean of `correlation_map`, from 0 to 1."""
    return 1 - correlation_map(first, second).mean()


def correlation_map(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the squared correlation of two images in the window around each pixel.

    In full precision and with the variances bounded below by 0: MONAI's
    `LocalNormalizedCrossCorrelationLoss` leaves its range under autocast, and in flat windows.

    Args:
        first: ``(B, 1, H, W)`` float32 with values about 0 to 1.
        second: The same shape.
    """

    def mean(maps: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(maps, KERNEL, stride=1, padding=KERNEL // 2, count_include_pad=False)

    one, other = mean(first), mean(second)
    covariance = mean(first * second) - one * other
    variances = (mean(m * m) - c * c for m, c in ((first, one), (second, other)))
    spread = torch.stack([variance.clamp_min(0) for variance in variances]).prod(0)
    return covariance.square() / (spread + SMALL)


def roughness(displacement: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of neighbouring displacements ``(B, 2, H, W)``.

    MONAI 1.6's `DiffusionLoss` indexes with lists, which torch 2.9 reads in another way.
    """
    return displacement.diff(dim=2).square().mean() + displacement.diff(dim=3).square().mean()


def structures(batch: dict[str, Any], logits: torch.Tensor) -> torch.Tensor:
    """Return what each slice shows, ``(B, C, H, W)``: ground truth, else the softmax of logits."""
    count = count_labelled(batch)
    probabilities = logits.float().softmax(1)
    truth = F.one_hot(batch[CommonKeys.LABEL][:count, 0].long(), logits.shape[1])
    return torch.cat([truth.movedim(-1, 1).to(probabilities.dtype), probabilities[count:]])


def partners(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each slice's partner ``(B,)`` and whether it has one ``(B,)``.

    The partner is of another volume: the labelled slice at the nearest relative height, an
    unlabelled one only where no labelled slice is of another volume.

    Args:
        batch: With ``labelled``, ``volume`` and ``position`` ``(B,)``, the relative height in its
            volume from 0 to 1.
    """
    volume, position = batch["volume"], batch["position"]
    distance = (position[:, None] - position[None]).abs() + 2.0 * ~batch["labelled"][None]
    distance = distance.masked_fill(volume[:, None] == volume[None], torch.inf)
    nearest = distance.min(dim=1)
    return nearest.indices, nearest.values.isfinite()
