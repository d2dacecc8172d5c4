"""How good pseudo-labels are, by labels that training never sees: for pictures, never a choice."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from medseg_kit.engines.precision import autocast
from medseg_kit.engines.semi_supervised import SemiSupervisedStep
from medseg_kit.engines.step import TrainStep
from medseg_kit.engines.teacher import unwrapped
from medseg_kit.networks.dual import DualNetwork


@dataclass(frozen=True)
class HiddenSlices:
    """Unlabelled training slices with the labels that are hidden from training.

    Attributes:
        images: ``(N, 1, H, W)`` float32, not augmented.
        labels: ``(N, H, W)`` class indices, not all of them background.
        batch_size: Slices a forward pass.
    """

    images: torch.Tensor
    labels: torch.Tensor
    batch_size: int = 8

    def score(self, network: nn.Module, step: TrainStep) -> dict[str, float]:
        """Return the Dice of each branch's argmax; a branch's name says what it is.

        The Dice of a class is that of all slices together; the mean runs over the organs that
        occur. Everything is done on copies in evaluation mode, with the training's precision:
        weights, batch statistics and random numbers of the training stay what they are.

        Args:
            network: The network that is trained.
            step: Its training step; see `branches`.
        """
        named = branches(network, step)
        device = next(network.parameters()).device
        forked = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(forked), torch.no_grad():
            copies = ((name, copy.deepcopy(branch).eval()) for name, branch in named.items())
            return {name: self._dice(branch, step.amp) for name, branch in copies}

    def _dice(self, branch: nn.Module, amp: str) -> float:
        device = next(branch.parameters()).device
        confusion = torch.zeros((), dtype=torch.int64)
        parts = zip(
            self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True
        )
        with autocast(device, amp):
            for images, labels in parts:
                logits = branch(images.to(device))
                classes = logits.shape[1]
                pairs = labels.to(device).long() * classes + logits.argmax(1)
                counts = pairs.flatten().bincount(minlength=classes**2)
                confusion = confusion + counts.reshape(classes, classes).cpu()
        common, sizes = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
        return float((2 * common / sizes)[1:][confusion.sum(1)[1:] > 0].double().mean())


def branches(network: nn.Module, step: TrainStep) -> dict[str, nn.Module]:
    """Return what makes pseudo-labels: the students, and a teacher once it is asked.

    Before, a teacher's batch statistics are those of the first step. Auxiliary decoders (CCT) are
    no branches: their input is perturbed, the main decoder labels.

    Args:
        network: The network that is trained.
        step: Its training step.
    """
    found = _students(unwrapped(network), "student")
    if not isinstance(step, SemiSupervisedStep) or step.teacher is None:
        return found
    teacher = step.teacher.network
    if teacher is None or not (step.consistency_weight or step.terms):
        return found
    return {**found, **_students(teacher, "teacher")}


def _students(network: nn.Module, role: str) -> dict[str, nn.Module]:
    if not isinstance(network, DualNetwork):
        return {role: network}
    pair = {"first": network.first, "second": network.second}
    return {f"{name} {role} ({type(each).__name__})": each for name, each in pair.items()}
