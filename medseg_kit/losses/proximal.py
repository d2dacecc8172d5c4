"""FedProx's proximal term (Li et al. 2020, https://arxiv.org/abs/1812.06127)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from medseg_kit.typing import StateDict


class ProximalTerm:
    """``mu / 2 * ||w - w_global||^2`` over the trainable parameters that the server sent.

    A loss term of a `TrainStep`: FedProx is federated averaging with this term. Before the first
    round it is zero.

    Args:
        mu: Strength of the pull towards the global weights, at least 0.

    Raises:
        ValueError: For a negative ``mu``.
    """

    def __init__(self, mu: float = 0.01) -> None:
        if mu < 0:
            raise ValueError(f"mu must not be negative, got {mu}")
        self.mu = mu
        self._global_state: StateDict = {}

    def on_round_start(self, global_state: StateDict) -> None:
        """Keep a copy of the global weights of this round."""
        self._global_state = {key: value.detach().clone() for key, value in global_state.items()}

    def __call__(self, engine: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return ``{"proximal": scalar}`` for the network of ``engine``."""
        network = getattr(engine.network, "module", engine.network)
        squares = [
            (parameter - self._global_state[name].to(parameter)).square().sum()
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and name in self._global_state
        ]
        total = (
            torch.stack(squares).sum() if squares else torch.zeros((), device=engine.state.device)
        )
        return {"proximal": 0.5 * self.mu * total}
