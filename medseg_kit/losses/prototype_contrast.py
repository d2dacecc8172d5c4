"""Contrast of pixels with a positive centre and negative keys, after InfoNCE.

The loss of MCSCv2 (thesis, equation 5.7, keys balanced by class) and of CCT-R (equations 6.3 to
6.5, a plain sum); the sampling follows U2PL and ReCo (https://arxiv.org/abs/2104.04465).
"""

from __future__ import annotations

import torch

from medseg_kit.losses.full_precision import full_precision


@full_precision
def prototype_contrast(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    keys: torch.Tensor,
    *,
    key_classes: torch.Tensor | None = None,
    temperature: float = 0.1,
) -> torch.Tensor:
    """Return the mean over anchors of ``-log(e^(a.p/T) / (e^(a.p/T) + Z))``.

    Args:
        anchors: ``(n, d)``, unit length.
        positives: The positive of all anchors ``(d,)``, or of each ``(n, d)``; unit length.
        keys: Negatives ``(m, d)``, unit length, the same for all anchors.
        key_classes: ``(m,)``: Z is the sum over classes of the mean over their keys (MCSCv2); a
            plain sum over keys if None (CCT-R).
        temperature: Divides the similarities.

    Returns:
        A scalar; 0 with gradient 0 where there are no anchors or no keys.
    """
    if len(anchors) == 0 or len(keys) == 0:
        return anchors.sum() * 0.0
    positive = (anchors * positives).sum(1, keepdim=True) / temperature
    negative = anchors @ keys.t() / temperature
    if key_classes is not None:
        _, index, counts = key_classes.unique(return_inverse=True, return_counts=True)
        negative = negative - counts[index].to(negative.dtype).log()
    return (torch.cat([positive, negative], dim=1).logsumexp(1) - positive[:, 0]).mean()


class FeatureBank:
    """First in, first out: features of a class' negatives with the class that each belongs to.

    Args:
        num_classes: Number of banks.
        capacity: Features a bank.
        dimension: Of a feature.
    """

    def __init__(self, num_classes: int, capacity: int, dimension: int) -> None:
        self.features = torch.zeros(num_classes, capacity, dimension)
        self.classes = torch.zeros(num_classes, capacity, dtype=torch.int64)
        self.written = torch.zeros(num_classes, dtype=torch.int64)

    @property
    def capacity(self) -> int:
        """Features a bank."""
        return self.features.shape[1]

    def size(self, index: int) -> int:
        """Return how many features a bank holds."""
        return min(int(self.written[index]), self.capacity)

    def push(self, index: int, features: torch.Tensor, classes: torch.Tensor) -> None:
        """Append ``(n, d)`` features, of which at most the capacity, and their classes ``(n,)``."""
        start, count = int(self.written[index]), len(features)
        if count > self.capacity:
            raise ValueError(f"{count} features do not fit a bank of {self.capacity}")
        self.features = self.features.to(features.device)
        self.classes = self.classes.to(features.device)
        place = (start + torch.arange(count, device=features.device)) % self.capacity
        self.features[index, place] = features.detach().float()
        self.classes[index, place] = classes
        self.written[index] += count

    def draw(self, index: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return up to ``count`` random features ``(m, d)`` and their classes ``(m,)``."""
        size = self.size(index)
        chosen = torch.randperm(size)[:count].to(self.features.device)
        return self.features[index, chosen], self.classes[index, chosen]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return everything stored."""
        return {"features": self.features, "classes": self.classes, "written": self.written}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.features = state["features"].clone()
        self.classes = state["classes"].clone()
        self.written = state["written"].clone()
