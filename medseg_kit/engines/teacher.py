"""The mean teacher: an exponential moving average of a student.

Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017
(https://arxiv.org/abs/1703.01780), with the decay of SSL4MIS.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Teacher:
    """A copy of the student whose weights follow it; made at the first use.

    The decay of step t is ``min(1 - 1 / (t + 1), decay)``: after the first step the teacher equals
    the student. The teacher stays in training mode (dropout and batch statistics active), as in
    SSL4MIS. It is state of the site: when the global weights of a federated round arrive it stays
    what it is and follows the student, which starts from them. Before the first step there is no
    teacher yet, so it begins as a copy of the first global weights.

    Args:
        decay: Largest decay.
        buffers: Average the buffers (running statistics) too; SSL4MIS leaves the teacher its own.
    """

    def __init__(self, decay: float = 0.99, *, buffers: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.buffers = buffers
        self.network: nn.Module | None = None
        self._waiting: dict[str, torch.Tensor] | None = None

    def of(self, student: nn.Module) -> nn.Module:
        """Return the teacher of a student, in training mode and without gradients."""
        if self.network is None:
            self.network = copy.deepcopy(unwrapped(student)).requires_grad_(False)
            if self._waiting is not None:
                self.network.load_state_dict(self._waiting)
                self._waiting = None
        return self.network.train()

    @torch.no_grad()
    def follow(self, student: nn.Module, step: int) -> None:
        """Move towards the student after optimisation step ``step``, counted from 0."""
        decay = min(1 - 1 / (step + 1), self.decay)
        source, target = unwrapped(student), self.of(student)
        average = get_ema_multi_avg_fn(decay)
        average(list(target.parameters()), list(source.parameters()), step)  # all in one call
        if self.buffers:
            for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
                if mine.is_floating_point():
                    mine.lerp_(theirs, 1 - decay)
                else:
                    mine.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's weights; empty before the first use."""
        if self.network is None:
            return dict(self._waiting or {})
        return dict(self.network.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; an empty state is a teacher not yet made."""
        self.network = None
        self._waiting = dict(state) or None


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside a data-parallel wrapper."""
    inner = getattr(network, "module", network)
    return inner if isinstance(inner, nn.Module) else network
