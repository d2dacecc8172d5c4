"""GLCL's local loss: supervised contrast of pixels, anchored on foreground alone.

Hu et al., "Semi-supervised contrastive learning for label-efficient medical image segmentation",
MICCAI 2021 (https://arxiv.org/abs/2109.07407). Its global pre-training stage is not here.
"""

from __future__ import annotations

import torch

from medseg_kit.losses.balanced_contrast import balanced_contrast


def local_contrast(
    features: torch.Tensor, labels: torch.Tensor, *, temperature: float = 0.1
) -> torch.Tensor:
    """Return the supervised contrastive loss of one group of pixels.

    The mean over foreground anchors of ``-log(exp(a.p / T) / sum of exp(a.k / T))``, averaged over
    the other pixels p of the anchor's class; the sum runs over all other pixels k, background
    included. That is MCSC's loss without its balance and without background anchors.

    Args:
        features: ``(n, d)``, unit length.
        labels: ``(n,)`` long; 0 is the background.
        temperature: Divides the similarities.

    Returns:
        A scalar with gradient to ``features``; 0 where no foreground class has two pixels.
    """
    return balanced_contrast(
        features, labels, temperature=temperature, balanced=False, discard_background=True
    )
