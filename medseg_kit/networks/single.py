"""One student that shows its taps in training, for contrastive losses on single networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from medseg_kit.networks.projectors import ChannelNorm, Projected
from medseg_kit.networks.taps import Student


class SingleNetwork(nn.Module):
    """A student with a projector a scale; what `DualNetwork` is for two.

    In training mode the forward returns ``{"logits", "taps", "projected": {scale: Projected}}``, in
    evaluation mode the student's logits. The keys of the state are ``student.*`` (what
    is deployed) and ``projectors.*``.

    Args:
        student: A network with taps.
        scales: Scales to project; none for taps alone.
        hidden: Channels between the two layers of a projector.
        out: Channels of the contrastive space.
    """

    def __init__(
        self, student: nn.Module, scales: Sequence[str] = (), hidden: int = 256, out: int = 128
    ) -> None:
        super().__init__()
        self.student = student
        tapped = cast("Student", student)
        self.projectors = nn.ModuleDict(
            {
                scale: _projector(
                    tapped.tap_channels[scale], hidden, out, normalise=scale in tapped.token_taps
                )
                for scale in scales
            }
        )

    def forward(self, image: torch.Tensor) -> Any:
        """Segment ``image`` ``(B, in_channels, H, W)``; see the class for the result."""
        if not self.training:
            return self.student(image)
        logits, taps = cast("Student", self.student).forward_features(image)
        projected = {
            scale: Projected(taps[scale], projector) for scale, projector in self.projectors.items()
        }
        return {"logits": logits, "taps": taps, "projected": projected}


def _projector(channels: int, hidden: int, out: int, *, normalise: bool) -> nn.Sequential:
    norm = [ChannelNorm(channels)] if normalise else []
    layers = [nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, out, 1)]
    return nn.Sequential(*norm, *layers)
