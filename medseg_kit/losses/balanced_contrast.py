"""MCSC's local contrastive loss with classes of equal weight.

Liu et al., "Multi-scale cross contrastive learning for semi-supervised medical image
segmentation", BMVC 2023 (https://arxiv.org/abs/2306.14293), equation 4.2 of the thesis without the
self term, as in its public code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from medseg_kit.losses.full_precision import full_precision

EPSILON = 1e-6


@full_precision
def balanced_contrast(
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 0.1,
    balanced: bool = True,
    discard_background: bool = False,
    precision: str = "full",
) -> torch.Tensor:
    """Return the supervised contrastive loss of one group of pixels.

    For an anchor of class y the positives are the other pixels of y; in the denominator every class
    counts as its mean (`balanced`), so that many background pixels weigh no more than few of an
    organ. A class with one pixel has no positives and no anchor; a group without any foreground, or
    without two pixels of one class, costs 0.

    Args:
        features: ``(n, d)``, unit length.
        labels: ``(n,)`` long; 0 is the background.
        temperature: Divides the similarities.
        balanced: Weight keys by one over the size of their class; else all alike (SCL).
        discard_background: No background pixel is an anchor (DB).
        precision: Of the products of features: "full" (float32, also under autocast) or "bf16".

    Returns:
        A scalar with gradient to ``features``.
    """
    present, index, counts = labels.unique(return_inverse=True, return_counts=True)
    anchors = (counts > 1)[index]
    if discard_background:
        anchors &= labels != 0
    if not bool(anchors.any()) or not bool((present != 0).any()):
        return features.sum() * 0.0
    one_hot = F.one_hot(index, len(present)).to(features.dtype)
    weights = _key_weights(counts.to(features.dtype), index, balanced=balanced)
    dtype = torch.bfloat16 if precision == "bf16" else features.dtype
    denominator = _Denominator.apply(features, one_hot, weights, temperature, dtype)
    positives = (features * (one_hot.t() @ features)[index]).sum(1) - features.square().sum(1)
    others = (counts - 1).clamp_min(1)[index]
    terms = (denominator + EPSILON).log() - positives / (temperature * others)
    loss: torch.Tensor = terms[anchors].mean()
    return loss


def _key_weights(counts: torch.Tensor, index: torch.Tensor, *, balanced: bool) -> torch.Tensor:
    """Return the weight of a key of each class for each anchor, ``(n, classes)``."""
    if not balanced:
        return torch.ones(len(index), len(counts), dtype=counts.dtype, device=counts.device)
    weights = (1 / counts).expand(len(index), -1).clone()
    own = 1 / (counts - 1).clamp_min(1)
    weights[torch.arange(len(index), device=index.device), index] = own[index]
    return weights


class _Denominator(torch.autograd.Function):
    """Sum over other pixels of weight x exp(similarity / temperature), with its own backward.

    The product with the one-hot labels sums the keys of a class, so no n x n mask is ever built.
    A pair counts twice, with either pixel as the anchor: the backward adds both weights first, so
    that one product with the features suffices.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        one_hot: torch.Tensor,
        weights: torch.Tensor,
        temperature: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        low = features.to(dtype)
        similarity = low @ low.t()
        exponentials = similarity.div_(temperature).exp_()
        exponentials.fill_diagonal_(0)
        sums = (exponentials @ one_hot.to(dtype)).to(features.dtype)
        ctx.save_for_backward(low, exponentials, one_hot, weights)
        ctx.temperature = temperature
        return (sums * weights).sum(1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        low, exponentials, one_hot, weights = ctx.saved_tensors
        coefficients = gradients[0][:, None] * weights / ctx.temperature
        pair = torch.cat([coefficients, one_hot], 1).to(low.dtype)
        swapped = torch.cat([one_hot, coefficients], 1).to(low.dtype)
        both = (pair @ swapped.t()).mul_(exponentials)
        return (both @ low).to(weights.dtype), None, None, None, None
