"""Episodes of one-shot learning: one superpixel of a slice, seen twice.

ALPNet (Ouyang et al. 2020, https://arxiv.org/abs/2007.09886). No label is read.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from monai.utils.enums import CommonKeys
from torch.utils.data import Dataset

from medseg_kit.data.slice_store import SliceStore, build_store
from medseg_kit.data.superpixels import SuperpixelFiles, Superpixels
from medseg_kit.data.volume_slices import VolumeSlices
from medseg_kit.transforms.pipelines import volume_preprocessing
from medseg_kit.typing import PathLike, UserError

logger = logging.getLogger(__name__)

MAX_DRAWS = 10  # a superpixel at the border may leave the slice with every distortion


class Distortion(Protocol):
    """Changes slices and masks; see `medseg_kit.transforms.episodes`."""

    def __call__(
        self, image: torch.Tensor, mask: torch.Tensor, *, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the changed slices and masks."""


class SuperpixelSlices(Dataset[dict[str, torch.Tensor]]):
    """All slices of a list of volumes that show body, with their superpixels.

    Superpixels are read from their files and made where they are missing (minutes; `medseg
    superpixels` does it beforehand and in parallel). Slices stay in memory, 8 bytes a pixel.

    Args:
        data: Datalist dictionaries; only ``image`` is read.
        image_size: Side S of the square slices, or ``(H, W)``.
        superpixels: How slices are cut up.
        folder: Where the superpixels are kept, such as ``DATA/superpixels``.
        intensity: As `volume_preprocessing`.
        orientation: As `volume_preprocessing`.
        direction: Direction of the body across which slices are cut, see `VolumeSlices`.
        jobs: Processes that make missing superpixels.

    Raises:
        UserError: For an empty list, and when a volume is read, if it cannot be used.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        *,
        image_size: int | Sequence[int],
        superpixels: Superpixels,
        folder: PathLike,
        intensity: str = "ct_or_mr",
        orientation: str | None = "RAS",
        direction: str | None = None,
        jobs: int = 1,
    ) -> None:
        if not data:
            raise UserError("the list of volumes is empty; check the data set folder")
        self.cases = [dict(case) for case in data]
        self.jobs = jobs
        self.files = SuperpixelFiles(
            folder,
            superpixels,
            image_size=image_size,
            orientation=orientation,
            direction=direction,
        )
        self.slicing = VolumeSlices(
            volume_preprocessing((CommonKeys.IMAGE,), orientation=orientation, intensity=intensity),
            image_size=image_size,
            num_classes=2,
            direction=direction,
        )

    @functools.cached_property
    def pieces(self) -> torch.Tensor:
        """Superpixels of all slices, ``(N, H, W)`` int32; made at the first use."""
        self.files.make(self.cases, jobs=self.jobs)
        return torch.cat([self.files.read(case) for case in self.cases])

    @functools.cached_property
    def usable(self) -> torch.Tensor:
        """Positions of the slices that show body, ``(M,)`` int64.

        Raises:
            UserError: If there is none.
        """
        found = self.pieces.flatten(1).any(dim=1).nonzero()[:, 0]
        if not len(found):
            raise UserError("no slice shows any body; check the threshold of the superpixels")
        return found

    @functools.cached_property
    def store(self) -> SliceStore:
        """The slices themselves; read at the first use."""
        cases = [{"image": case[CommonKeys.IMAGE]} for case in self.cases]
        return build_store(cases, self.slicing, [None] * len(cases))

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return ``image`` ``(1, H, W)`` and ``superpixels`` ``(1, H, W)`` of a slice."""
        position = self.usable[index]
        return {
            CommonKeys.IMAGE: self.store.images[position],
            "superpixels": self.pieces[position][None],
        }

    def draw(
        self, indices: torch.Tensor, generator: torch.Generator, *, last: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return slices ``(B, 1, H, W)`` and one superpixel of each as mask, uint8.

        Args:
            indices: ``(B,)``, positions among the usable slices.
            generator: Of the CPU; every superpixel is equally likely.
            last: Draw the one with the highest number, too; an only one is always drawn.
        """
        positions = self.usable[indices]
        pieces = self.pieces[positions]
        counts = pieces.flatten(1).amax(dim=1)
        if not last:
            counts = (counts - 1).clamp(min=1)
        chosen = 1 + (torch.rand(len(counts), generator=generator) * counts).long()
        mask = pieces == chosen.clamp(max=counts)[:, None, None]
        return self.store.images[positions], mask[:, None].to(torch.uint8)


class EpisodeLoader:
    """Batches of episodes: every slice once an epoch, or a random part of them.

    One number of torch's global generator, drawn at the start of an epoch, decides the order, the
    superpixels and the distortions of that epoch. Where a superpixel has left its support with the
    distortion, the batch is drawn anew.

    Args:
        dataset: The slices.
        batch_size: Episodes a step; 1 in the papers.
        max_steps: Most steps an epoch, with slices drawn without replacement (FedCoWPro caps at
            1,000); all slices if None.
        augmentation: Makes support and query from the same slice; both are the slice if None.
        draw_last: Draw the last superpixel of a slice, too; ALPNet's code never does.
        device: Where the slices are distorted.

    Raises:
        ValueError: For sizes that cannot be.
    """

    def __init__(
        self,
        dataset: SuperpixelSlices,
        *,
        batch_size: int = 1,
        max_steps: int | None = None,
        augmentation: Distortion | None = None,
        draw_last: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if batch_size < 1 or (max_steps is not None and max_steps < 1):
            raise ValueError(
                f"batch_size ({batch_size}) and max_steps ({max_steps}) must be at least 1"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.augmentation = augmentation
        self.draw_last = draw_last
        self.device = device

    def __len__(self) -> int:
        steps = -(-len(self.dataset) // self.batch_size)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def num_samples(self) -> int:
        """Slices that an epoch uses: a site's weight in a federation."""
        return min(len(self) * self.batch_size, len(self.dataset))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield ``image`` ``(2B, 1, H, W)`` and ``label`` (masks): supports first, then queries."""
        generator = torch.Generator().manual_seed(int(torch.randint(0, 2**62, (1,))))
        order = torch.randperm(len(self.dataset), generator=generator)
        for indices in order.split(self.batch_size)[: len(self)]:
            for _ in range(MAX_DRAWS):
                images, masks = self._views(indices, generator)
                if bool(masks[: len(indices)].flatten(1).any(dim=1).all()):
                    break
            else:
                logger.warning("an episode's superpixel left the support %d times", MAX_DRAWS)
            yield {CommonKeys.IMAGE: images, CommonKeys.LABEL: masks}

    def _views(
        self, indices: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and masks ``(2B, 1, H, W)``: the supports, then the queries."""
        drawn = self.dataset.draw(indices, generator, last=self.draw_last)
        image, mask = (x.to(self.device) for x in drawn)
        if self.augmentation is None:
            return image.repeat(2, 1, 1, 1), mask.repeat(2, 1, 1, 1)
        support, query = (self.augmentation(image, mask, generator=generator) for _ in range(2))
        return torch.cat([support[0], query[0]]), torch.cat([support[1], query[1]])
