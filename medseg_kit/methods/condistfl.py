"""ConDistFL: conditional distillation from the global model for partially labelled sites.

Wang et al., "ConDistFL: conditional distillation for federated learning from partially annotated
data", 2023 (https://arxiv.org/abs/2308.04070). The aggregation is plain federated averaging.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.utils.enums import CommonKeys
from torch import nn

from medseg_kit.engines.schedules import Schedule, linear
from medseg_kit.engines.step import Losses, TrainStep, annotated_classes
from medseg_kit.losses.partial import known_onehot, marginal_loss

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

    from medseg_kit.typing import StateDict


class ConDistFLStep(TrainStep):
    """Marginal loss on the site's organs, distillation from the round's global model on the others.

    Args:
        organs: All organs, in label order.
        temperature: Softens both softmaxes; 2 in the paper.
        weight_schedule: Weight of the distillation over the whole federation; linear in the paper.
        smooth: Added to numerator and denominator of the distillation's Dice.
        **options: Those of `TrainStep`.
    """

    def __init__(
        self,
        organs: Sequence[str],
        *,
        temperature: float = 2.0,
        weight_schedule: Schedule | None = None,
        smooth: float = 1e-5,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.organs = list(organs)
        self.temperature = temperature
        self.weight_schedule = linear(0.01, 1.0) if weight_schedule is None else weight_schedule
        self.smooth = smooth
        self._global_state: StateDict | None = None
        self._teacher: nn.Module | None = None

    def on_round_start(self, global_state: StateDict) -> None:
        """Take the global weights of this round as the teacher."""
        super().on_round_start(global_state)
        self._global_state = {key: value.detach().clone() for key, value in global_state.items()}
        self._teacher = None

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the logits ``(B, 1 + K, ...)`` and both losses; without a round only the first."""
        image, label = batch[CommonKeys.IMAGE], batch[CommonKeys.LABEL]
        known = annotated_classes(batch, 1 + len(self.organs))
        logits = engine.network(image)
        losses = {"marginal": marginal_loss(logits, label, known)}
        teacher = self._round_teacher(engine)
        if teacher is not None:
            with torch.no_grad():
                teacher_logits = teacher(image)
            weight = self.weight_schedule(self.global_step, self.total_steps)
            distillation = conditional_distillation(
                logits,
                teacher_logits,
                label,
                known,
                temperature=self.temperature,
                smooth=self.smooth,
            )
            losses["distillation"] = weight * distillation
        return logits, losses

    def _round_teacher(self, engine: SupervisedTrainer) -> nn.Module | None:
        """Build the frozen teacher once a round, in evaluation mode."""
        if self._teacher is None and self._global_state is not None:
            network = getattr(engine.network, "module", engine.network)
            teacher = copy.deepcopy(network)
            teacher.load_state_dict(self._global_state)
            self._teacher = teacher.eval().requires_grad_(False)
        return self._teacher


def conditional_distillation(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    label: torch.Tensor,
    annotated: torch.Tensor,
    *,
    temperature: float = 2.0,
    smooth: float = 1e-5,
) -> torch.Tensor:
    """Dice loss between student and teacher, given "not an organ that this site labels".

    Args:
        logits: Student ``(B, 1 + K, H, W[, D])``.
        teacher_logits: Teacher, same shape.
        label: Label indices ``(B, 1, H, W[, D])``.
        annotated: Known classes ``(B, 1 + K)``; background counts as not labelled here, because a
            site's background may hide other organs.
        temperature: Softens both softmaxes.
        smooth: Added to numerator and denominator.

    Returns:
        A scalar, averaged over the cases and the classes outside the site's organs; zero with a
        graph when every voxel belongs to the site's organs. Sites that annotate every
        organ have nothing to distil and get zero too.
    """
    foreground = annotated.clone()
    foreground[:, 0] = False
    space = [1] * (logits.dim() - 2)
    outside = (~foreground).to(torch.float32).view(*foreground.shape, *space)
    student = _conditional(logits, outside, temperature)
    teacher = _conditional(teacher_logits, outside, temperature)
    region = _region(teacher_logits, label, annotated, foreground)
    axes = list(range(2, logits.dim()))
    intersection = (student * teacher * region).sum(dim=axes)
    total = ((student + teacher) * region).sum(dim=axes)
    dice = 1 - (2 * intersection + smooth) / (total + smooth)
    counted = (~foreground).to(dice.dtype) * (~annotated).any(dim=1, keepdim=True).to(dice.dtype)
    return (dice * counted).sum() / counted.sum().clamp_min(1)


def _conditional(logits: torch.Tensor, outside: torch.Tensor, temperature: float) -> torch.Tensor:
    probabilities = torch.softmax(logits.float() / temperature, dim=1)
    inside = (probabilities * (1 - outside)).sum(dim=1, keepdim=True)
    return probabilities * outside / (1 - inside + 1e-5)


def _region(
    teacher_logits: torch.Tensor,
    label: torch.Tensor,
    annotated: torch.Tensor,
    foreground: torch.Tensor,
) -> torch.Tensor:
    """Voxels ``(B, 1, ...)`` where neither teacher nor ground truth sees an organ of the site."""
    teacher_class = teacher_logits.argmax(dim=1)
    case = torch.arange(len(label), device=label.device).view(-1, *[1] * (teacher_class.dim() - 1))
    truth_class = known_onehot(label, annotated).argmax(dim=1)
    seen = foreground[case, teacher_class] | foreground[case, truth_class]
    return (~seen).unsqueeze(1).float()
