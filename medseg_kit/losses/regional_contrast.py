"""ReCo's regional contrast: hard pixels against the mean of their class and sampled negatives.

Liu et al., "Bootstrapping semantic segmentation with regional contrast", ICLR 2022
(https://arxiv.org/abs/2104.04465).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from medseg_kit.losses.full_precision import full_precision


@full_precision
def regional_contrast(
    queries: torch.Tensor, prototype: torch.Tensor, keys: torch.Tensor, *, temperature: float = 0.5
) -> torch.Tensor:
    """Return the mean over queries of ``-log(e^(q.p/T) / (e^(q.p/T) + sum of e^(q.k/T)))``.

    Args:
        queries: Hard pixels of one class ``(n, d)``, unit length.
        prototype: Mean representation of the class ``(d,)``, of any length.
        keys: Negatives of each query, ``(n, m, d)``, unit length.
        temperature: Divides the cosine similarities.

    Returns:
        A scalar with gradient to ``queries``; 0 with gradient 0 where there is no query.
    """
    if len(queries) == 0:
        return queries.sum() * 0.0
    positive = queries @ F.normalize(prototype, dim=0)
    negative = torch.einsum("nd,nmd->nm", queries, keys)
    logits = torch.cat([positive[:, None], negative], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def class_prototypes(features: torch.Tensor, classes: torch.Tensor, num: int) -> torch.Tensor:
    """Return the mean feature of each class ``(num, d)``; zeros for an absent class.

    Args:
        features: ``(n, d)``.
        classes: ``(n,)`` long, below ``num``.
        num: Number of classes.
    """
    one_hot = F.one_hot(classes, num).to(features.dtype)
    return (one_hot.t() @ features) / one_hot.sum(0).clamp_min(1)[:, None]


def negative_shares(
    prototypes: torch.Tensor, present: torch.Tensor, index: int, *, temperature: float = 0.5
) -> torch.Tensor:
    """Return how likely a negative of a class comes from each class, ``(C,)``.

    The softmax of the cosine similarity of the prototypes: similar classes are contrasted more.

    Args:
        prototypes: ``(C, d)``.
        present: ``(C,)`` bool; one besides ``index`` at least.
        index: The class; its own share is 0, and so is that of absent classes.
        temperature: Divides the similarities.
    """
    similarity = F.cosine_similarity(prototypes[index : index + 1], prototypes) / temperature
    allowed = present.clone()
    allowed[index] = False
    return similarity.masked_fill(~allowed, -torch.inf).softmax(0)


def draw_pixels(classes: torch.Tensor, shares: torch.Tensor, count: int) -> torch.Tensor:
    """Return ``count`` random positions: a class by its share, then a pixel of it uniformly.

    Args:
        classes: Class of each pixel ``(n,)``.
        shares: ``(C,)``, 0 for classes without a pixel.
        count: Positions to draw, with replacement.
    """
    sizes = torch.bincount(classes, minlength=len(shares)).cpu()
    drawn = torch.multinomial(shares.float().cpu(), count, replacement=True)
    within = (torch.rand(count) * sizes[drawn]).long().clamp_max(sizes[drawn] - 1)
    starts = sizes.cumsum(0) - sizes
    order = classes.argsort(stable=True)
    return order[(starts[drawn] + within).to(order.device)]
