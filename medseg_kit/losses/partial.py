"""Losses for labels that name only some of the organs.

``annotated`` says, per case and class, whether the label is known: ``(B, 1 + K)`` of bool, index 0
(background) always true.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def multi_head_losses(
    logits: Mapping[str, torch.Tensor],
    label: torch.Tensor,
    annotated: torch.Tensor,
    *,
    organs: Sequence[str],
    loss_function: LossFunction,
) -> dict[str, torch.Tensor]:
    """Compute one loss per head over the cases in which its organ is annotated.

    Args:
        logits: Two-channel logits of each head, ``{organ: (B, 2, H, W[, D])}``.
        label: Label indices ``(B, 1, H, W[, D])``; value ``i + 1`` is ``organs[i]``.
        annotated: Known classes of each case ``(B, 1 + K)``.
        organs: All organs, in label order.
        loss_function: Loss of two-channel logits against ``(B, 1, ...)`` indices.

    Returns:
        One scalar per head. A head without an annotated case in the batch gives a zero that
        keeps its graph, so that distributed training still sees every parameter.
    """
    losses = {}
    for organ, head_logits in logits.items():
        value = organs.index(organ) + 1
        known = annotated[:, value]
        if bool(known.any()):
            target = (label[known] == value).to(torch.float32)
            losses[organ] = loss_function(head_logits[known].float(), target)
        else:
            losses[organ] = head_logits.float().sum() * 0.0
    return losses


def marginal_probabilities(probabilities: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """Add the probability of every class that a case does not annotate to its background.

    Args:
        probabilities: Softmax output ``(B, 1 + K, H, W[, D])``.
        annotated: Known classes ``(B, 1 + K)``.

    Returns:
        ``(B, 1 + K, ...)``; channels of unknown classes are zero, the sum over channels stays one.
    """
    space = [1] * (probabilities.dim() - 2)
    known = annotated.to(probabilities.dtype).view(*annotated.shape, *space)
    unknown_mass = (probabilities * (1 - known)).sum(dim=1, keepdim=True)
    kept = probabilities * known
    return torch.cat([kept[:, :1] + unknown_mass, kept[:, 1:]], dim=1)


def marginal_loss(
    logits: torch.Tensor,
    label: torch.Tensor,
    annotated: torch.Tensor,
    *,
    smooth: float = 1e-5,
) -> torch.Tensor:
    """Sum of Dice (over the whole batch) and cross-entropy on ``[background + unknown, known]``.

    The marginal loss of ConDistFL (Wang et al. 2023, https://arxiv.org/abs/2308.04070): what a
    case does not annotate may be anything, so it counts as background only together with it.

    Args:
        logits: ``(B, 1 + K, H, W[, D])``.
        label: Label indices ``(B, 1, H, W[, D])``; values that a case does not annotate are
            treated as background.
        annotated: Known classes ``(B, 1 + K)``.
        smooth: Added to numerator and denominator of the Dice.

    Returns:
        A scalar. Dice is the mean over the classes that some case of the batch annotates.
    """
    probabilities = marginal_probabilities(torch.softmax(logits.float(), dim=1), annotated)
    onehot = known_onehot(label, annotated)
    axes = [0, *range(2, logits.dim())]
    intersection = (probabilities * onehot).sum(dim=axes)
    total = probabilities.sum(dim=axes) + onehot.sum(dim=axes)
    dice = 1 - (2 * intersection + smooth) / (total + smooth)
    present = annotated.any(dim=0)
    likelihood = (probabilities * onehot).sum(dim=1)
    cross_entropy = -torch.log(likelihood.clamp_min(1e-7)).mean()
    return dice[present].mean() + cross_entropy


def known_onehot(label: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """One-hot labels ``(B, 1 + K, ...)`` in which unknown classes are background."""
    num_classes = annotated.shape[1]
    index = label[:, 0].long()
    case = torch.arange(len(index), device=index.device).view(-1, *[1] * (index.dim() - 1))
    index = torch.where(annotated[case, index], index, torch.zeros_like(index))
    return F.one_hot(index, num_classes).movedim(-1, 1).float()


class MarginalLoss(nn.Module):
    """`marginal_loss` as a module."""

    def __init__(self, *, smooth: float = 1e-5) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(
        self, logits: torch.Tensor, label: torch.Tensor, annotated: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss; see `marginal_loss` for shapes."""
        return marginal_loss(logits, label, annotated, smooth=self.smooth)
