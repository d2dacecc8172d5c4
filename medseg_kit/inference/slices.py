"""Slice-wise networks as an inferer: one volume and a 2-D network in, one volume of logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch.nn import functional

from medseg_kit.inference.precision import fast_precision
from medseg_kit.transforms.planes import (
    INTERPOLATIONS,
    check_direction,
    resize_slices,
    slicing_axis,
)

Network = Callable[..., torch.Tensor]


class SliceInferer(Inferer):
    """Runs a 2-D network over the slices of a volume, a whole batch of slices at a time.

    Slices are taken along the axis through which the file was acquired: ``slice_axis`` if given,
    else the stored axis with the largest spacing, on a tie the one with the fewest voxels, then the
    last. The choice is logged. Flips and exchanged axes in the preprocessing are followed, so the
    slices are those of the file also when the volume has been brought to RAS.

    Args:
        slice_axis: Stored axis of the file (0, 1, 2) to slice along; chosen as above if None.
        direction: Direction of the body across which volumes are cut instead, as in training: "S"
            for axial slices, whatever the spacing. See `slicing_axis`.
        slice_size: In-plane size ``(H, W)`` that the network wants; slices are resized to it and
            the logits back, linearly. Their own size if None.
        divisor: Slices are padded at their end to a multiple of this, and the logits cropped.
        sw_batch_size: Slices a batch on a GPU.
        cpu_batch_size: Slices a batch on the CPU, where larger ones do not fit its caches.
        interpolation: How slices are resized, "linear" or "nearest"; as in training.
        fast: Compute in bfloat16; labels differ slightly from those of full precision.

    Raises:
        ValueError: If ``slice_axis`` is not 0, 1 or 2, ``slice_size`` not two positive whole
            numbers, ``interpolation`` or ``direction`` unknown, or an axis and a direction given.
    """

    def __init__(
        self,
        *,
        slice_axis: int | None = None,
        direction: str | None = None,
        slice_size: Sequence[int] | None = None,
        divisor: int = 1,
        sw_batch_size: int = 16,
        cpu_batch_size: int = 2,
        interpolation: str = "linear",
        fast: bool = False,
    ) -> None:
        super().__init__()
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {list(INTERPOLATIONS)}, got {interpolation!r}"
            )
        if slice_axis not in (None, 0, 1, 2):
            raise ValueError(f"slice_axis must be 0, 1 or 2 (a stored axis), got {slice_axis}")
        if slice_size is not None and not _is_size(slice_size):
            raise ValueError(f"slice_size is {slice_size}; give two positive whole numbers, [H, W]")
        check_direction(direction)
        if direction is not None and slice_axis is not None:
            raise ValueError(
                f"slice_axis ({slice_axis}) and direction ({direction!r}) both say how to cut; give"
                " one of them (slice_direction: null in a bundle's configuration)"
            )
        self.slice_axis = slice_axis
        self.direction = direction
        self.slice_size = None if slice_size is None else tuple(slice_size)
        self.divisor = divisor
        self.sw_batch_size = sw_batch_size
        self.cpu_batch_size = cpu_batch_size
        self.interpolation = interpolation
        self.fast = fast

    def __call__(
        self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the logits of all slices as one plain tensor ``(B, C, H, W, D)`` float32.

        Args:
            inputs: Volumes ``(B, channels, H, W, D)``; a `MetaTensor` tells the spacing.
            network: Maps slices ``(N, channels, H, W)`` to ``(N, C, H, W)``.
            *args: Passed on to the network.
            **kwargs: Passed on to the network.

        Raises:
            ValueError: If ``inputs`` has not three spatial axes.
        """
        if inputs.dim() != 5:
            raise ValueError(
                f"slices need volumes (B, C, H, W, D), got shape {tuple(inputs.shape)}; "
                "2-D images are (H, W, 1) volumes"
            )
        axis = slicing_axis(inputs, self.slice_axis, direction=self.direction)
        volumes = inputs.as_subclass(torch.Tensor)
        slices = volumes.movedim(2 + axis, 1).flatten(0, 1)
        with fast_precision(network, slices.device, fast=self.fast):
            answers = [
                self._predict(batch, lambda batch: network(batch, *args, **kwargs))
                for batch in slices.split(self._batch_size(slices.device))
            ]
        stacked = torch.cat(answers).reshape(len(volumes), -1, *answers[0].shape[1:])
        return stacked.movedim(1, 2 + axis)

    def _batch_size(self, device: torch.device) -> int:
        return self.cpu_batch_size if device.type == "cpu" else self.sw_batch_size

    def _predict(self, slices: torch.Tensor, network: Network) -> torch.Tensor:
        height, width = slices.shape[2:]
        if self.slice_size is not None:
            slices = resize_slices(slices, self.slice_size, interpolation=self.interpolation)
        rows, columns = slices.shape[2:]
        slices = functional.pad(slices, (0, -columns % self.divisor, 0, -rows % self.divisor))
        answer: torch.Tensor = network(slices.contiguous()).float()[..., :rows, :columns]
        return resize_slices(answer, (height, width))


def _is_size(sides: Sequence[Any]) -> bool:
    """Whether sides are two positive whole numbers."""
    return len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
