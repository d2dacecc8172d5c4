"""Dice of whole batches as the label-efficient literature computes it, and with cross-entropy.

SSL4MIS (Luo et al. 2022, https://github.com/HiLab-git/SSL4MIS); also in Swin-Unet and CS-Unet.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

SMOOTH = 1e-5


def soft_dice(
    probabilities: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean over classes of 1 - Dice, each class over the whole batch.

    With squared terms in the denominator; the background counts as a class. A class that neither
    prediction nor target holds costs nothing.

    Args:
        probabilities: ``(B, C, H, W)``.
        target: Class of each pixel, ``(B, H, W)`` long.
        weight: Weight of each pixel, broadcastable to ``(B, 1, H, W)``; 1 if None.
    """
    classes = torch.arange(probabilities.shape[1], device=target.device)
    one_hot = target[:, None] == classes[:, None, None]
    squares = probabilities.square()
    if weight is None:
        counts = one_hot
    else:
        counts = weight * one_hot
        squares = weight * squares
    axes = (0, 2, 3)
    overlap = (counts * probabilities).sum(axes)
    sizes = squares.sum(axes) + counts.sum(axes)
    return (1 - (2 * overlap + SMOOTH) / (sizes + SMOOTH)).mean()


def soft_overlap(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the mean over classes of 1 - Dice between two soft segmentations.

    As `soft_dice`, which it equals where ``second`` is one-hot.

    Args:
        first: ``(B, C, H, W)`` probabilities.
        second: The same shape.
    """
    axes = (0, 2, 3)
    overlap = (first * second).sum(axes)
    sizes = first.square().sum(axes) + second.square().sum(axes)
    return (1 - (2 * overlap + SMOOTH) / (sizes + SMOOTH)).mean()


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean cross-entropy over pixels, or over their weights.

    Args:
        logits: ``(B, C, H, W)``.
        target: Class of each pixel, ``(B, H, W)`` long.
        weight: Weight of each pixel, ``(B, H, W)`` or broadcastable; 1 if None.
    """
    if weight is None:
        return F.cross_entropy(logits, target)
    losses = F.cross_entropy(logits, target, reduction="none") * weight
    return losses.sum() / weight.expand_as(losses).sum().clamp_min(SMOOTH)


class DiceCrossEntropy(nn.Module):
    """Weighted sum of cross-entropy and Dice of a batch of slices.

    Args:
        cross_entropy_weight: Weight of the cross-entropy.
        dice_weight: Weight of the Dice loss. SSL4MIS and MCSC halve both; CS-Unet takes 0.4 and 0.6
            on Synapse.
    """

    def __init__(self, cross_entropy_weight: float = 0.5, dice_weight: float = 0.5) -> None:
        super().__init__()
        self.cross_entropy_weight = cross_entropy_weight
        self.dice_weight = dice_weight

    def forward(
        self, logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of logits against labels.

        Args:
            logits: ``(B, C, H, W)``.
            label: ``(B, 1, H, W)``.
            weight: Weight of each pixel, ``(H, W)``; 1 if None.
        """
        target, logits = label[:, 0].long(), logits.float()
        dice = soft_dice(logits.softmax(1), target, weight)
        entropy = cross_entropy(logits, target, weight)
        return self.cross_entropy_weight * entropy + self.dice_weight * dice
