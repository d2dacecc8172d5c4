"""Projection heads that bring the taps of two students into one contrastive space.

Liu et al., "Multi-scale cross contrastive learning for semi-supervised medical image
segmentation", BMVC 2023 (https://arxiv.org/abs/2306.14293).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from medseg_kit.networks.taps import Student, Taps
from medseg_kit.typing import UserError

_TOKENS = 4096  # pixels projected at a time; 256 hidden channels of them are 4 MB


class Projected:
    """A tap in the contrastive space; only the pixels that a loss asks for are projected.

    A projector works pixel by pixel, so projecting some pixels gives what projecting the whole map
    gives at their places. The contrastive losses look at a small share of the pixels.

    Args:
        tap: ``(B, c, h, w)``.
        project: The projector, of ``(B, c, h, w)`` to ``(B, out, h, w)``.
    """

    def __init__(self, tap: torch.Tensor, project: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.tap = tap
        self.project = project

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return self.tap.shape[2], self.tap.shape[3]

    def maps(self) -> torch.Tensor:
        """Return the features of all pixels, ``(B, out, h, w)`` of unit length."""
        return unit_length(self.project(self.tap))

    def all(self) -> torch.Tensor:
        """Return the features of all pixels, ``(B x h x w, out)`` of unit length.

        A few at a time: what stands between the projector's layers stays in the cache.
        """
        return torch.cat([self._project(part) for part in self._tokens().split(_TOKENS)])

    def pixels(self, index: torch.Tensor) -> torch.Tensor:
        """Return the features of some pixels, ``(n, out)`` of unit length.

        Args:
            index: Flat indices into ``B x h x w``, ``(n,)``; n is at least 1.
        """
        return self._project(self._tokens()[index])

    def _tokens(self) -> torch.Tensor:
        return self.tap.permute(0, 2, 3, 1).flatten(0, 2)

    def _project(self, tokens: torch.Tensor) -> torch.Tensor:
        features = self.project(tokens.t()[None, :, None])  # (1, out, 1, n)
        return unit_length(features[0, :, 0].t())


def unit_length(features: torch.Tensor) -> torch.Tensor:
    """Return features of length 1 along their second axis, in single precision.

    Lengths in bfloat16 are wrong by half a per cent, which a temperature of 0.1 multiplies by ten.
    """
    return F.normalize(features.float(), dim=1)


class Projectors(nn.Module):
    """One projector a scale: a layer for each branch, then a layer which both branches share.

    Args:
        tap_channels_a: Channels of the first student's taps, by scale name.
        tap_channels_b: Channels of the second student's taps, by scale name.
        scales: The scales to project.
        hidden: Channels between the two layers.
        out: Channels of the contrastive space.
        token_taps: For each branch the scales whose tap is layer-normalised first (the inner taps
            of a transformer; see `projectors_between`).

    Raises:
        UserError: If a student has no tap of a scale.
    """

    def __init__(
        self,
        tap_channels_a: Mapping[str, int],
        tap_channels_b: Mapping[str, int],
        scales: Sequence[str] = ("full", "eighth"),
        hidden: int = 256,
        out: int = 128,
        *,
        token_taps: tuple[Sequence[str], Sequence[str]] = ((), ()),
    ) -> None:
        super().__init__()
        for scale in scales:
            _check_scale(scale, tap_channels_a, tap_channels_b)
        self.scales = tuple(scales)
        self.first = nn.ModuleDict(
            {s: _branch_layer(tap_channels_a[s], hidden, s in token_taps[0]) for s in scales}
        )
        self.second = nn.ModuleDict(
            {s: _branch_layer(tap_channels_b[s], hidden, s in token_taps[1]) for s in scales}
        )
        self.shared = nn.ModuleDict({s: nn.Conv2d(hidden, out, kernel_size=1) for s in scales})

    def forward(self, taps_a: Taps, taps_b: Taps) -> dict[str, tuple[Projected, Projected]]:
        """Return the taps ``(B, c, h, w)`` of both students, ready to be projected, by scale."""
        return {
            scale: (
                Projected(taps_a[scale], nn.Sequential(self.first[scale], self.shared[scale])),
                Projected(taps_b[scale], nn.Sequential(self.second[scale], self.shared[scale])),
            )
            for scale in self.scales
        }


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map ``(B, C, H, W)``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise each pixel's channel vector; the shape is kept."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def projectors_between(
    first: Student,
    second: Student,
    scales: Sequence[str] = ("full", "eighth"),
    hidden: int = 256,
    out: int = 128,
) -> Projectors:
    """Return the projectors that fit the taps of two students.

    Args:
        first: First student.
        second: Second student.
        scales: The scales to project.
        hidden: Channels between the two layers.
        out: Channels of the contrastive space.

    Raises:
        UserError: If a student has no tap of a scale.
    """
    return Projectors(
        first.tap_channels,
        second.tap_channels,
        scales,
        hidden,
        out,
        token_taps=(first.token_taps, second.token_taps),
    )


def _branch_layer(in_channels: int, hidden: int, normalise: bool) -> nn.Sequential:
    layers: list[nn.Module] = [ChannelNorm(in_channels)] if normalise else []
    return nn.Sequential(*layers, nn.Conv2d(in_channels, hidden, kernel_size=1), nn.ReLU())


def _check_scale(scale: str, *tap_channels: Mapping[str, int]) -> None:
    for channels in tap_channels:
        if scale not in channels:
            raise UserError(f"no tap of scale {scale!r}; this student has {sorted(channels)}")
