"""Batches of labelled and unlabelled slices, in the manner of SSL4MIS.

Luo et al. 2022, https://github.com/HiLab-git/SSL4MIS: labelled slices first, then unlabelled ones,
both in random order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from medseg_kit.data.slices import SliceDataset
from medseg_kit.typing import UserError

logger = logging.getLogger(__name__)

ABSENT = (
    "no slice is labelled: batches hold unlabelled ones alone, and supervised losses are absent",
    "no slice is unlabelled: batches hold labelled ones alone, and losses of unlabelled images are"
    " absent; a label budget (`labelled`) hides labels",
)


class Augmentation(Protocol):
    """Changes a batch and adds ``matrix``; see `medseg_kit.transforms.slices`."""

    def __call__(self, batch: dict[str, Any], *, generator: torch.Generator) -> dict[str, Any]:
        """Return the augmented batch."""


class TwoStreamLoader:
    """A fixed number of batches an epoch, each with labelled slices first.

    Labelled and unlabelled slices are drawn from random permutations that follow each other without
    end; every epoch begins new ones, so within it slices of a kind are used equally often. A data
    set without slices of one kind fills the whole batch with the other. One number of torch's
    global generator, drawn at the start of an epoch, decides the order and the augmentation of that
    epoch; they do not depend on what a method draws during it, so methods with the same seed see
    the same batches.

    Args:
        dataset: The slices.
        batch_size: Slices a batch.
        labelled_batch_size: Labelled ones among them; all of them for supervised training.
        steps_per_epoch: Batches an epoch, the loader's length.
        augmentation: Applied to whole batches; none if None (``matrix`` is the identity then).
        device: Where batches are augmented; that of the slices if None.
        labels_needed: Refuse to fill a batch that is to be all labelled with unlabelled slices; a
            site without labels in a federation gives such batches instead.

    Raises:
        ValueError: For sizes that cannot be.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        *,
        batch_size: int,
        labelled_batch_size: int,
        steps_per_epoch: int,
        augmentation: Augmentation | None = None,
        device: torch.device | str | None = None,
        labels_needed: bool = True,
    ) -> None:
        if batch_size < 1 or not 0 <= labelled_batch_size <= batch_size:
            raise ValueError(
                f"labelled_batch_size ({labelled_batch_size}) must be from 0 to batch_size"
                f" ({batch_size}), which is at least 1"
            )
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch must be at least 1, got {steps_per_epoch}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.labelled_batch_size = labelled_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.augmentation = augmentation
        self.device = device
        self.labels_needed = labels_needed
        self._told = False

    def __len__(self) -> int:
        return self.steps_per_epoch

    @property
    def num_samples(self) -> int:
        """Volumes that a batch is drawn from, a site's weight in a federation; at least 1.

        Those with a label where every slice of a batch has one.
        """
        if self.labelled_batch_size == self.batch_size:
            return max(1, sum(self.dataset.case_labelled))
        return len(self.dataset.cases)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of one epoch; its seed is drawn with the first one.

        Raises:
            UserError: When the batch is all labelled, and no slice is.
        """
        generator = torch.Generator().manual_seed(int(torch.randint(0, 2**62, (1,))))
        streams = self._streams(generator)
        for _ in range(self.steps_per_epoch):
            indices = torch.cat([next(stream) for stream in streams])
            batch: dict[str, Any] = self.dataset.batch(indices)
            if self.device is not None:
                batch = {key: value.to(self.device) for key, value in batch.items()}
            if self.augmentation is None:
                yield {
                    **batch,
                    "matrix": torch.eye(2, 3, device=self.device).repeat(len(indices), 1, 1),
                }
            else:
                yield self.augmentation(batch, generator=generator)

    def _streams(self, generator: torch.Generator) -> list[Iterator[torch.Tensor]]:
        labelled = self.dataset.labelled
        kinds = [labelled.nonzero()[:, 0], (~labelled).nonzero()[:, 0]]
        sizes = [self.labelled_batch_size, self.batch_size - self.labelled_batch_size]
        if self.labels_needed and sizes[1] == 0 and not len(kinds[0]):
            raise UserError(
                "no slice is labelled, but every slice of a batch has to be: give labels, or a"
                " smaller labelled_batch_size"
            )
        for one, other in ((0, 1), (1, 0)):
            if not len(kinds[one]):
                if sizes[one] and not self._told:
                    logger.warning(ABSENT[one])
                sizes[one], sizes[other] = 0, self.batch_size
        self._told = True
        return [
            endless_permutations(kind, size, generator)
            for kind, size in zip(kinds, sizes, strict=True)
            if size
        ]


def endless_permutations(
    indices: torch.Tensor, size: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield ``size`` indices at a time from random permutations that follow each other.

    Args:
        indices: ``(N,)`` with N at least 1; may be fewer than ``size``.
        size: Indices at a time.
        generator: Of the CPU.
    """
    waiting = indices[:0]
    while True:
        while len(waiting) < size:
            order = torch.randperm(len(indices), generator=generator)
            waiting = torch.cat([waiting, indices[order]])
        yield waiting[:size]
        waiting = waiting[size:]
