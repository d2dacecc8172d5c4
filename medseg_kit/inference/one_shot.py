"""One-shot segmentation as an inferer: a query volume and support prototypes in, logits out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from monai.data import MetaTensor

from medseg_kit.inference.positions import (
    RULES,
    find_parts,
    oracle_parts,
    slice_profiles,
)
from medseg_kit.inference.precision import fast_precision
from medseg_kit.inference.slices import Network, SliceInferer
from medseg_kit.inference.superpixel_average import average_over_superpixels
from medseg_kit.inference.support import SupportSource, field_of_view, marked_in_part
from medseg_kit.networks.one_shot import ABSENT, NEEDS_SUPPORT, NO_MARGIN, OneShotNetwork
from medseg_kit.networks.support_prototypes import SupportPrototypes
from medseg_kit.transforms.modality import modality_of
from medseg_kit.transforms.planes import (
    resize_slices,
    slicing_axis,
    voxel_mm,
)
from medseg_kit.typing import UserError

logger = logging.getLogger(__name__)

EXTENTS = ("full", "oracle")
# Training varies the scale from 0.9 to 1.2; sides that differ by more are outside of that.
_FIELD_RATIO = 4 / 3


class OneShotInferer(SliceInferer):
    """Runs a `OneShotNetwork` over volumes and tells it which part of the organs a slice shows.

    Slices are taken as `SliceInferer` takes them. With extent ``full`` the part comes from the
    position of the query beside the support scan (`find_parts`); with ``oracle``, for evaluation
    as in the papers, from the query's own ground truth, and nothing is found outside the organ's
    true slices. Slices without any organ do not go through the network.

    Args:
        slice_size: In-plane size ``(H, W)`` that the network wants.
        support: Where the prototypes come from, if the network has none; see `prepare`.
        extent: "full" or "oracle".
        rule: How the query's position is found, "aligned", "body" or "whole".
        margin: Share of an organ's extent by which the query's may be longer than the support's.
        superpixel_size: Each organ's margin is averaged over superpixels of the query, the smallest
            of so many pixels of ``slice_size`` (`average_over_superpixels`); not if None, as in the
            papers.
        sw_batch_size: Slices a batch on a GPU.
        interpolation: How slices are resized, "linear" or "nearest"; as in training.
        direction: Direction of the body across which query and support are cut, as in training:
            "S" for axial slices; as each was acquired if None. See `slicing_axis`.
        fast: Compute in bfloat16 where the device has it; labels differ slightly.

    Attributes:
        warnings: What to know about the last call's answers.

    Raises:
        ValueError: For an unknown extent, rule, interpolation or direction, or a size below 1.
    """

    def __init__(  # noqa: PLR0913 - switches, all by keyword
        self,
        *,
        slice_size: Sequence[int],
        support: SupportSource | None = None,
        extent: str = "full",
        rule: str = "aligned",
        margin: float = 0.0,
        superpixel_size: int | None = None,
        sw_batch_size: int = 16,
        interpolation: str = "linear",
        direction: str | None = None,
        fast: bool = False,
    ) -> None:
        super().__init__(
            slice_size=slice_size,
            sw_batch_size=sw_batch_size,
            interpolation=interpolation,
            direction=direction,
            fast=fast,
        )
        for name, value, known in (("extent", extent, EXTENTS), ("rule", rule, RULES)):
            if value not in known:
                raise ValueError(f"{name} must be one of {list(known)}, got {value!r}")
        if superpixel_size is not None and superpixel_size < 1:
            raise ValueError(f"superpixel_size must be at least 1 pixel, got {superpixel_size}")
        self.support = support
        self.extent = extent
        self.rule = rule
        self.margin = margin
        self.superpixel_size = superpixel_size
        self.warnings: list[str] = []

    @property
    def needs_label(self) -> bool:
        """Whether a call takes the ground truth."""
        return self.extent == "oracle"

    def prepare(self, network: torch.nn.Module) -> None:
        """Give the network the prototypes of the support source, made with its present weights.

        Batch prediction calls this once before the first case; otherwise the first volume does.
        In training call it before each validation (`SupportHandler`).

        Raises:
            UserError: If there is no support, or it does not serve.
        """
        unwrapped = _unwrapped(network)
        if self.support is None:
            if not unwrapped.supports:
                raise UserError(NEEDS_SUPPORT)
            return
        unwrapped.load_supports(
            self.support.supports(
                unwrapped,
                slice_size=cast("tuple[int, int]", self.slice_size),
                interpolation=self.interpolation,
                direction=self.direction,
            )
        )

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Network,
        *args: Any,
        label: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the logits of all slices as one plain tensor ``(B, 1 + K, H, W, D)`` float32.

        Args:
            inputs: Volumes ``(B, channels, H, W, D)``; a `MetaTensor` tells the spacing.
            network: A `OneShotNetwork`, perhaps wrapped, in evaluation mode.
            *args: Passed on to the network after the part.
            label: Ground truth ``(B, 1, H, W, D)``; needed by the extent "oracle" only.
            **kwargs: Passed on to the network.

        Raises:
            ValueError: If ``inputs`` has not three spatial axes, or the ground truth is missing.
            UserError: If there are no prototypes, or they are of another modality.
        """
        if inputs.dim() != 5:
            raise ValueError(f"volumes (B, C, H, W, D) are needed, got {tuple(inputs.shape)}")
        if self.extent == "oracle" and label is None:
            raise ValueError("the extent 'oracle' takes the slices from the ground truth: no label")
        one_shot = _unwrapped(cast("torch.nn.Module", network))
        if not one_shot.supports:
            self.prepare(one_shot)
        axis = slicing_axis(inputs, direction=self.direction)
        answers = []
        self.warnings = []
        for index in range(len(inputs)):
            volume = inputs[index]
            number = _of_its_modality(volume, one_shot.supports)
            support = one_shot.supports[number]
            self.warnings += _warnings(volume, axis, support)
            slices = volume.as_subclass(torch.Tensor).movedim(1 + axis, 0)
            truth = None if label is None else label[index, 0].as_subclass(torch.Tensor)
            part = self._parts(
                slices,
                None if truth is None else truth.movedim(axis, 0),
                spacing=voxel_mm(volume)[axis],
                support=support,
            )
            with fast_precision(network, slices.device, fast=self.fast):
                logits = self._segment(slices, part, network, number, *args, **kwargs)
            answers.append(logits.movedim(0, 1 + axis))
        return torch.stack(answers)

    def _parts(
        self,
        slices: torch.Tensor,
        truth: torch.Tensor | None,
        *,
        spacing: float,
        support: SupportPrototypes,
    ) -> torch.Tensor:
        """Return the part ``(D, K)`` of slices ``(D, C, H, W)``."""
        if self.extent == "oracle" and truth is not None:
            return oracle_parts(truth, len(support.organs)).to(slices.device)
        small = resize_slices(slices, cast("tuple[int, int]", self.slice_size))
        part = find_parts(
            slice_profiles(small), spacing, support.scans, rule=self.rule, margin=self.margin
        )
        return part.to(slices.device)

    def _segment(
        self,
        slices: torch.Tensor,
        part: torch.Tensor,
        network: Network,
        support: int,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the logits ``(D, 1 + K, H, W)`` of slices ``(D, C, H, W)``."""
        shape = (len(slices), 1 + part.shape[1], *slices.shape[2:])
        logits = slices.new_full(shape, NO_MARGIN, dtype=torch.float32)
        logits[:, 0] = 0.0
        batch_size = self._batch_size(slices.device)
        limits = (float(slices[:, 0].min()), float(slices[:, 0].max()))
        shown = (part != ABSENT).any(dim=1).nonzero()[:, 0]
        for chosen in shown.split(batch_size) if len(shown) else ():  # no batch of nothing

            def answer(batch: torch.Tensor, chosen: torch.Tensor = chosen) -> torch.Tensor:
                answers = network(batch, part[chosen], support, *args, **kwargs)
                if self.superpixel_size is None:
                    return answers
                return average_over_superpixels(
                    answers, batch, min_size=self.superpixel_size, limits=limits
                )

            logits[chosen] = self._predict(slices[chosen], answer)
        return logits


def _unwrapped(network: torch.nn.Module) -> OneShotNetwork:
    inner = getattr(network, "module", network)
    if not isinstance(inner, OneShotNetwork):
        raise TypeError(f"a OneShotNetwork is needed, got {type(inner).__name__}")
    return inner


def _of_its_modality(volume: torch.Tensor, supports: Sequence[SupportPrototypes]) -> int:
    """Return the position of the support of a volume's modality; refuse a query without one."""
    known = [support.modality for support in supports]
    if known == ["unknown"]:
        return 0
    modality = modality_of(volume.as_subclass(torch.Tensor))
    if modality not in known:
        raise UserError(
            f"the query is {modality}, the support {' and '.join(known)}: prototypes compare"
            " within a modality only; give a support scan of the query's modality"
        )
    return known.index(modality)


def _warnings(volume: torch.Tensor, axis: int, support: SupportPrototypes) -> list[str]:
    """Return what to know about a query: organs not looked for, slices of other size (logged)."""
    found = [f"the support has no {organ}: it is not looked for" for organ in support.missing]
    found += [marked_in_part(*item) for item in support.short.items()]
    if isinstance(volume, MetaTensor):  # else no voxel size
        sides = field_of_view(volume, axis)
        fields = zip(*(scan.field_of_view for scan in support.scans), strict=True)
        usual = tuple(sum(field) / len(field) for field in fields)
        if any(max(a, b) > _FIELD_RATIO * min(a, b) for a, b in zip(sides, usual, strict=True)):
            text = (
                f"the query's field of view is {_sides(sides)} mm, the support's {_sides(usual)}:"
                " slices are compared by their share of it, so organs differ in size or shape; crop"
                " one of them"
            )
            logger.warning(text)
            found.append(text)
    return found


def _sides(sides: Sequence[float]) -> str:
    return " x ".join(f"{side:.0f}" for side in sides)
