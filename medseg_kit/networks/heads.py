"""The segmentation head that MCSC puts in place of both students' own heads.

Liu et al., "Multi-scale cross contrastive learning for semi-supervised medical image
segmentation", BMVC 2023 (https://arxiv.org/abs/2306.14293).
"""

from __future__ import annotations

from torch import nn


def mcsc_head(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 3 x 3 classifier with Xavier-normal weights, ``(B, in, H, W) -> (B, out, H, W)``."""
    head = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    nn.init.xavier_normal_(head.weight)
    return head
