"""Federated averaging (McMahan et al. 2017, https://arxiv.org/abs/1602.05629)."""

from __future__ import annotations

from medseg_kit.fl.strategy import Strategy

WEIGHTINGS = ("samples", "equal")


class FedAvg(Strategy):
    """Average every entry of the state dict, batch-norm statistics included.

    With one 1 + K network at every site this is conventional federated learning. FedProx is this
    strategy with `medseg_kit.losses.proximal.ProximalTerm` in the training step.

    Args:
        weighting: "samples" (the paper: training cases, or slices where the loader counts those)
            or "equal" (1 / sites).

    Raises:
        ValueError: For another weighting.
    """

    def __init__(self, weighting: str = "samples") -> None:
        super().__init__()
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {WEIGHTINGS}, got {weighting!r}")
        self.weighting = weighting

    def weight(self, key: str, site: str, num_samples: float) -> float:
        """Return the samples of the site, or 1."""
        del key, site
        return num_samples if self.weighting == "samples" else 1.0
