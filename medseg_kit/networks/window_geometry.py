"""Sizes of a U-shaped window transformer: stages, channels, windows, shifts and drop-path rates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from medseg_kit.networks.taps import TAP_NAMES
from medseg_kit.networks.window_attention import BlockPlace
from medseg_kit.typing import UserError


@dataclass(frozen=True)
class WindowGeometry:
    """Sizes of the network; the decoder mirrors the encoder.

    Attributes:
        image_size: Side of the square image, in pixels.
        patch_size: Side of a patch, in pixels.
        window_size: Side of a window, in tokens; a stage with fewer tokens is one window.
        embed_dim: Channels of the first stage; they double a stage.
        depths: Blocks a stage.
        num_heads: Attention heads a stage.
        drop_path: Drop-path rate of the last block; the rates grow linearly from 0.

    Raises:
        UserError: If the windows do not tile every stage (it names the nearest image size that
            fits), or the heads do not divide the channels.
    """

    image_size: int = 224
    patch_size: int = 4
    window_size: int = 7
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    drop_path: float = 0.2

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads) or len(self.depths) < 2:
            raise UserError(
                f"depths {list(self.depths)} and num_heads {list(self.num_heads)} must have one "
                "entry a stage, two stages at least"
            )
        for dim, heads in zip(self.dims, self.num_heads):
            if dim % heads:
                raise UserError(
                    f"num_heads {heads} must divide the {dim} channels of its stage; "
                    f"change num_heads or embed_dim {self.embed_dim}"
                )
        if not self._fits(self.image_size):
            raise UserError(
                f"image_size {self.image_size} does not fit patch_size {self.patch_size} and "
                f"window_size {self.window_size}; the nearest that fits is {self._nearest()}"
            )

    @property
    def dims(self) -> list[int]:
        """Channels of each encoder stage."""
        return [self.embed_dim * 2**level for level in range(len(self.depths))]

    @property
    def resolutions(self) -> list[int]:
        """Side of the token map of each encoder stage."""
        return [self.image_size // (self.patch_size * 2**level) for level in range(len(self.dims))]

    def drop_path_rates(self) -> list[list[float]]:
        """Return the drop-path rate of each block, by encoder stage."""
        last = max(sum(self.depths) - 1, 1)
        starts = accumulate(self.depths, initial=0)
        return [
            [self.drop_path * index / last for index in range(start, start + depth)]
            for start, depth in zip(starts, self.depths)
        ]

    def places(self) -> list[list[BlockPlace]]:
        """Return where each block stands, by encoder stage; every second block is shifted."""
        stages = zip(
            self.dims, self.num_heads, self.resolutions, self.drop_path_rates(), strict=True
        )
        return [
            [
                self._place(dim, heads, side, rate, shifted=index % 2 == 1)
                for index, rate in enumerate(rates)
            ]
            for dim, heads, side, rates in stages
        ]

    def tap_channels(self) -> dict[str, int]:
        """Return the channels of the taps after the decoder stages and before the head."""
        channels = {"full": self.embed_dim}
        for level, dim in enumerate(self.dims[:-2]):
            stride = self.patch_size * 2**level
            if stride in TAP_NAMES:
                channels[TAP_NAMES[stride]] = dim
        return channels

    def _place(self, dim: int, heads: int, side: int, rate: float, *, shifted: bool) -> BlockPlace:
        window = min(self.window_size, side)
        shift = window // 2 if shifted and side > self.window_size else 0
        return BlockPlace(dim, heads, side, window, shift, rate)

    def _fits(self, image_size: int) -> bool:
        if image_size < 1 or image_size % self._unit:
            return False
        sides = [image_size // (self.patch_size * 2**level) for level in range(len(self.depths))]
        return all(side <= self.window_size or side % self.window_size == 0 for side in sides)

    @property
    def _unit(self) -> int:
        return self.patch_size * int(2 ** (len(self.depths) - 1))

    def _nearest(self) -> int:
        """Return the nearest size that fits; a multiple of unit times window always does."""
        sizes = range(self._unit, self.image_size + self._unit * self.window_size + 1, self._unit)
        return min(filter(self._fits, sizes), key=lambda size: abs(size - self.image_size))
