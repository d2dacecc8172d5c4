"""Bidirectional copy-paste: labelled and unlabelled images exchange a rectangle.

Bai et al., "Bidirectional copy-paste for semi-supervised medical image segmentation", CVPR 2023
(https://arxiv.org/abs/2305.00673).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys
from torch import nn

from medseg_kit.engines.semi_supervised import SemiSupervisedStep, branches_of, count_labelled
from medseg_kit.engines.step import Losses, TimedTerm
from medseg_kit.engines.teacher import Teacher
from medseg_kit.losses.soft_dice import DiceCrossEntropy
from medseg_kit.transforms.components import largest_components

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

RECTANGLE = 2 / 3  # share of the height and width
PSEUDO_WEIGHT = 0.5


@dataclass(frozen=True)
class Mixture:
    """Images that get a rectangle of other images of the batch.

    Attributes:
        outer: Position in the batch of each image ``(M,)``.
        inner: Position of the image that fills its rectangle ``(M,)``.
        outer_weight: Weight of what is left of the images.
        inner_weight: Weight of the rectangles.
    """

    outer: torch.Tensor
    inner: torch.Tensor
    outer_weight: float = 1.0
    inner_weight: float = 1.0

    def blend(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the mixed images ``(M, 1, H, W)``; ``mask`` ``(H, W)`` is False in the rectangle.

        Args:
            image: The batch ``(B, 1, H, W)``.
            mask: ``(H, W)`` bool.
        """
        return torch.where(mask, image[self.outer], image[self.inner])

    def loss(
        self, logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, loss: nn.Module
    ) -> torch.Tensor:
        """Return the weighted sum of a loss over the two regions.

        Args:
            logits: Of the mixed images, ``(M, C, H, W)``.
            target: Of the batch, ``(B, H, W)`` long.
            mask: As in `blend`.
            loss: ``(logits, label, weight of the pixels) -> loss``, as `DiceCrossEntropy`.
        """
        logits = logits.float()
        total = logits.new_zeros(())
        for source, weight, region in (
            (self.outer, self.outer_weight, mask),
            (self.inner, self.inner_weight, ~mask),
        ):
            label = target[source][:, None]
            total = total + weight * loss(logits, label, region.to(logits.dtype))
        return total


def labelled_mixtures(num_labelled: int) -> list[Mixture]:
    """Return the mixture of one half of the labelled images with the other (the first phase)."""
    first, second = _halves(torch.arange(num_labelled))
    return [Mixture(first, second)]


def exchanged_mixtures(
    num_labelled: int, num_images: int, pseudo_weight: float = PSEUDO_WEIGHT
) -> list[Mixture]:
    """Return both directions of the exchange (the second phase).

    One half of the unlabelled images gets rectangles of one half of the labelled ones, the other
    halves the other way round. Where the numbers differ the smaller kind is used again.

    Args:
        num_labelled: Labelled images of the batch, at least 1; they come first.
        num_images: Images of the batch, more than ``num_labelled``.
        pseudo_weight: Weight of regions of unlabelled images.
    """
    size = max(num_labelled, num_images - num_labelled)
    labelled = torch.arange(size) % num_labelled
    unlabelled = num_labelled + torch.arange(size) % (num_images - num_labelled)
    (labelled_a, labelled_b), (unlabelled_a, unlabelled_b) = _halves(labelled), _halves(unlabelled)
    return [
        Mixture(unlabelled_a, labelled_a, outer_weight=pseudo_weight),
        Mixture(labelled_b, unlabelled_b, inner_weight=pseudo_weight),
    ]


class BidirectionalCopyPasteStep(SemiSupervisedStep):
    """First labelled images among themselves, then labelled and unlabelled ones with a teacher.

    In the second phase the teacher's classes, of which the largest component each is kept, are the
    target of what comes from unlabelled images. The teacher and the student start it from the last
    weights of the first (the paper: from the best). A batch without unlabelled images goes on as
    in the first phase; one without labelled images teaches nothing.

    Args:
        first_phase: Share of all steps that belongs to the first phase (the paper: 10,000 of
            40,000).
        pseudo_weight: Weight of regions from unlabelled images.
        ema_decay: Decay of the teacher, which averages buffers too.
        **options: Those of `SemiSupervisedStep`; the supervised loss is that of each region, so it
            takes a weight of the pixels (see `Mixture.loss`), and `consistency` means nothing here.
    """

    def __init__(
        self,
        *,
        first_phase: float = 0.25,
        pseudo_weight: float = PSEUDO_WEIGHT,
        ema_decay: float = 0.99,
        **options: Any,
    ) -> None:
        super().__init__(teacher=Teacher(ema_decay, buffers=True), **options)
        if not 0 <= first_phase <= 1:
            raise ValueError(f"first_phase is a share of all steps in [0, 1], got {first_phase}")
        self.first_phase = first_phase
        self.pseudo_weight = pseudo_weight

    @property
    def first_steps(self) -> int:
        """Steps of the first phase; a federation plans ``total_steps`` anew at each round."""
        return round(self.first_phase * self.total_steps)

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the logits of the mixed images and their loss."""
        image, count = batch[CommonKeys.IMAGE], count_labelled(batch)
        if count == 0:
            logits = engine.network(image)
            return logits, self.absent(logits)
        target = batch[CommonKeys.LABEL][:, 0].long()
        if self.global_step < self.first_steps or count == len(image):
            mixtures = labelled_mixtures(count)
        else:
            mixtures = exchanged_mixtures(count, len(image), self.pseudo_weight)
            pseudo = self.ask_teacher(engine, image[count:]).argmax(1)
            target = torch.cat([target[:count], largest_components(pseudo)])
        mask = rectangle_mask(image.shape[-2:], image.device)
        logits = engine.network(torch.cat([mixture.blend(image, mask) for mixture in mixtures]))
        loss = mixed_loss(mixtures, logits, target, mask, loss=self.supervised_loss)
        return logits, {"copy_paste": loss}

    def after_step(self, engine: SupervisedTrainer) -> None:
        """Move the teacher in the second phase."""
        if self.global_step > self.first_steps:
            super().after_step(engine)


class CopyPaste(TimedTerm):
    """The exchange of rectangles as a loss term under a method with branches (ours).

    Half as many images as the batch has are mixed once more and go through the network; what comes
    from unlabelled images is compared with the branch's own target, the other's classes.

    Args:
        weight: Weight of the term.
        pseudo_weight: Weight of regions from unlabelled images.
        unlabelled_start: Steps in which labelled images are mixed among themselves, as in the
            first phase of the method.
        largest_component: Keep the largest component of each class of an unlabelled image.
    """

    def __init__(
        self,
        weight: float = 1.0,
        *,
        pseudo_weight: float = PSEUDO_WEIGHT,
        unlabelled_start: int = 0,
        largest_component: bool = True,
    ) -> None:
        self.weight = weight
        self.pseudo_weight = pseudo_weight
        self.unlabelled_start = unlabelled_start
        self.largest_component = largest_component
        self._loss = DiceCrossEntropy()

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> Losses:
        """Return the loss of the mixed images; nothing without images of both kinds."""
        image, count = batch[CommonKeys.IMAGE], count_labelled(batch)
        branches = branches_of(batch)
        alone = self.global_step < self.unlabelled_start
        if count == 0 or (count == len(image) and not alone):
            return {}
        mixtures = (
            labelled_mixtures(count)
            if alone
            else exchanged_mixtures(count, len(image), self.pseudo_weight)
        )
        mask = rectangle_mask(image.shape[-2:], image.device)
        output = engine.network(torch.cat([mixture.blend(image, mask) for mixture in mixtures]))
        logits = output["logits"] if isinstance(output, dict) else output
        said = [logits] if isinstance(logits, torch.Tensor) else logits
        total = image.new_zeros(())
        for branch, mixed in zip(branches, said, strict=False):  # a teacher's branch learns nothing
            target = self._target(branch.target, count)
            total = total + mixed_loss(mixtures, mixed, target, mask, loss=self._loss)
        return {"copy_paste": self.weight * total}

    def _target(self, target: torch.Tensor, count: int) -> torch.Tensor:
        if not self.largest_component:
            return target
        return torch.cat([target[:count], largest_components(target[count:])])


def mixed_loss(
    mixtures: Sequence[Mixture],
    logits: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor,
    *,
    loss: nn.Module,
) -> torch.Tensor:
    """Return the sum of the mixtures' losses; ``logits`` hold their images one after the other.

    Args:
        mixtures: The mixtures.
        logits: ``(N, C, H, W)``.
        target: As in `Mixture.loss`.
        mask: As in `Mixture.blend`.
        loss: As in `Mixture.loss`.
    """
    parts = logits.split([len(mixture.outer) for mixture in mixtures])
    losses = [m.loss(part, target, mask, loss) for m, part in zip(mixtures, parts, strict=True)]
    return torch.stack(losses).sum()


def rectangle_mask(size: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
    """Return True with a rectangle of False at a random place, ``(H, W)``.

    The rectangle has two thirds of the height and of the width; the same for a whole batch.
    """
    height, width = (int(side * RECTANGLE) for side in size)
    top = int(torch.randint(0, size[0] - height + 1, (1,)))
    left = int(torch.randint(0, size[1] - width + 1, (1,)))
    mask = torch.ones(tuple(size), dtype=torch.bool, device=device)
    mask[top : top + height, left : left + width] = False
    return mask


def _halves(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and the last half; a single position is both."""
    half = max(1, len(positions) // 2)
    return positions[:half], positions[-half:]
