"""Bidirectional copy-paste: labelled and unlabelled images exchange a rectangle.

Bai et al., "Bidirectional copy-paste for semi-supervised medical image segmentation", CVPR 2023
(https://arxiv.org/abs/2305.00673).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.transforms import KeepLargestConnectedComponent
from monai.utils.enums import CommonKeys

from medseg_kit.engines.semi_supervised import Branch, SemiSupervisedStep, count_labelled
from medseg_kit.engines.step import Losses
from medseg_kit.engines.teacher import Teacher
from medseg_kit.losses.soft_dice import cross_entropy, soft_dice

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

RECTANGLE = 2 / 3  # share of the height and width
PSEUDO_WEIGHT = 0.5


class BidirectionalCopyPasteStep(SemiSupervisedStep):
    """First labelled images among themselves, then labelled and unlabelled ones with a teacher.

    In the second phase the teacher's classes, of which the largest component each is kept, are the
    target of what comes from unlabelled images. A batch without unlabelled images goes on as in the
    first phase; one without labelled images teaches nothing.

    Args:
        first_phase: Share of all steps that belongs to the first phase (the paper: 10,000 of
            40,000). The paper starts the second from the best weights of the first; here they are
            its last.
        pseudo_weight: Weight of regions from unlabelled images.
        ema_decay: Decay of the teacher, which averages buffers too.
        **options: Those of `SemiSupervisedStep`.
    """

    def __init__(
        self,
        *,
        first_phase: float = 0.25,
        pseudo_weight: float = PSEUDO_WEIGHT,
        ema_decay: float = 0.99,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 <= first_phase <= 1:
            raise ValueError(f"first_phase is a share of all steps in [0, 1], got {first_phase}")
        self.first_steps = round(first_phase * self.total_steps)
        self.pseudo_weight = pseudo_weight
        self.teacher = Teacher(ema_decay, buffers=True)

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the logits of the mixed images and their loss."""
        image, count = batch[CommonKeys.IMAGE], count_labelled(batch)
        label = batch[CommonKeys.LABEL][:, 0].long()
        pairs = min(count, len(image) - count)
        if count == 0:
            logits = engine.network(image)
            return logits, self.absent(logits)
        if self.global_step < self.first_steps or pairs == 0:
            weights = torch.ones(count, device=image.device)
            return self._mixed(
                engine, (image[:count], label[:count]), weights, torch.arange(count).roll(1)
            )
        if self.global_step == self.first_steps:
            self.teacher.restart(engine.network)
        unlabelled = image[count : count + pairs]
        with torch.no_grad():
            pseudo = self.teacher.of(engine.network)(unlabelled).argmax(1)
        pseudo = largest_components(pseudo)
        images = torch.cat([image[:pairs], unlabelled])
        labels = torch.cat([label[:pairs], pseudo])
        weights = torch.ones(2 * pairs, device=image.device)
        weights[pairs:] = self.pseudo_weight
        return self._mixed(engine, (images, labels), weights, torch.arange(2 * pairs).roll(pairs))

    def _mixed(
        self,
        engine: SupervisedTrainer,
        pair: tuple[torch.Tensor, torch.Tensor],
        weights: torch.Tensor,
        partner: torch.Tensor,
    ) -> tuple[torch.Tensor, Losses]:
        """Paste each image's rectangle from its partner; return logits and loss."""
        images, labels = pair
        mask = rectangle_mask(images.shape[-2:]).to(images.device)
        logits = engine.network(images * mask + images[partner] * (1 - mask))
        regions = ((labels, mask, weights), (labels[partner], 1 - mask, weights[partner]))
        return logits, {"copy_paste": region_loss(logits, regions)}

    def after_step(self, engine: SupervisedTrainer) -> None:
        """Move the teacher in the second phase."""
        if self.global_step > self.first_steps:
            self.teacher.follow(engine.network, self.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state and the teacher."""
        return {**super().state_dict(), "teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.teacher.load_state_dict(state["teacher"])


class CopyPaste:
    """The exchange of rectangles as a loss term under a method with two branches (ours).

    Labelled and unlabelled images of the batch are mixed once more and go through the network; what
    comes from unlabelled images is compared with the branch's own target, the other's classes.

    Args:
        weight: Weight of the term.
        pseudo_weight: Weight of regions from unlabelled images.
    """

    def __init__(self, weight: float = 1.0, *, pseudo_weight: float = PSEUDO_WEIGHT) -> None:
        self.weight = weight
        self.pseudo_weight = pseudo_weight

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> Losses:
        """Return the loss of the mixed images; nothing without images of both kinds."""
        image, count = batch[CommonKeys.IMAGE], count_labelled(batch)
        branches: Sequence[Branch] = batch["branches"]
        pairs = min(count, len(image) - count)
        if pairs == 0:
            return {}
        chosen = torch.cat([torch.arange(pairs), torch.arange(count, count + pairs)])
        partner = torch.arange(2 * pairs).roll(pairs)
        images = image[chosen]
        weights = torch.ones(2 * pairs, device=image.device)
        weights[pairs:] = self.pseudo_weight
        mask = rectangle_mask(image.shape[-2:]).to(image.device)
        output = engine.network(images * mask + images[partner] * (1 - mask))["logits"]
        total = image.new_zeros(())
        for branch, logits in zip(branches, output, strict=True):
            target = branch.target[chosen]
            regions = ((target, mask, weights), (target[partner], 1 - mask, weights[partner]))
            total = total + region_loss(logits, regions)
        return {"copy_paste": self.weight * total}


def rectangle_mask(size: Sequence[int]) -> torch.Tensor:
    """Return ones with a rectangle of zeros at a random place, ``(H, W)``.

    The rectangle has two thirds of the height and of the width; the same for a whole batch.
    """
    height, width = (int(side * RECTANGLE) for side in size)
    top = int(torch.randint(0, size[0] - height + 1, (1,)))
    left = int(torch.randint(0, size[1] - width + 1, (1,)))
    mask = torch.ones(tuple(size))
    mask[top : top + height, left : left + width] = 0
    return mask


def region_loss(
    logits: torch.Tensor,
    regions: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Return half of Dice plus cross-entropy, each the sum over regions of its own mean.

    Args:
        logits: ``(B, C, H, W)``.
        regions: Target ``(B, H, W)``, mask ``(H, W)`` and weight of each image ``(B,)``.
    """
    logits = logits.float()
    probabilities = logits.softmax(1)
    total = logits.new_zeros(())
    for target, mask, weights in regions:
        for weight in weights.unique():
            chosen = weights == weight
            share = chosen.float().mean() * weight
            place = mask.expand(int(chosen.sum()), *mask.shape)
            dice = soft_dice(probabilities[chosen], target[chosen], place[:, None])
            entropy = cross_entropy(logits[chosen], target[chosen], place)
            total = total + share * (dice + entropy) / 2
    return total


def largest_components(labels: torch.Tensor) -> torch.Tensor:
    """Keep the largest 2-D component of each foreground class, ``(B, H, W)``."""
    keep = KeepLargestConnectedComponent(is_onehot=False, independent=True)
    kept = [keep(label[None].cpu())[0] for label in labels]
    return torch.stack([torch.as_tensor(item) for item in kept]).to(labels)
