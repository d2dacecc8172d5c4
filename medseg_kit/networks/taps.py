"""Taps: the decoder maps of a student that contrastive and consistency losses read."""

from __future__ import annotations

from typing import Protocol

import torch

# Scale names of the taps and how many image pixels a side of one of their pixels spans. At 224 px
# they are the 224, 56 and 28 maps of the papers (which print 256 for the first).
TAP_STRIDES = {"full": 1, "quarter": 4, "eighth": 8}
TAP_NAMES = {stride: name for name, stride in TAP_STRIDES.items()}

Taps = dict[str, torch.Tensor]


class Student(Protocol):
    """What every segmentation network of a pair offers besides ``forward(image) -> logits``.

    Attributes:
        tap_channels: Channels of each tap, by scale name.
        token_taps: Scales whose tap is a token sequence that a projector normalises first.
    """

    tap_channels: dict[str, int]
    token_taps: tuple[str, ...]

    def forward_features(self, image: torch.Tensor) -> tuple[torch.Tensor, Taps]:
        """Return logits ``(B, C, H, W)`` and taps ``{scale: (B, c, H / stride, W / stride)}``."""
        ...
