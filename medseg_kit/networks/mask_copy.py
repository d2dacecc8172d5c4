"""The support mask copied onto the query: the floor that any one-shot method must beat."""

from __future__ import annotations

import torch
from torch.nn import functional


class MaskCopyClassifier:
    """Answers every query with the support's mask, wherever the query's own pixels lie.

    It stands in the place of a `PrototypeClassifier`: the mask is the only prototype. With several
    supports the answer is their mean mask. The encoder decides nothing but the resolution; with
    `torch.nn.Identity` that of the slice.
    """

    def __repr__(self) -> str:
        """Name the class without an address, as digests need it."""
        return f"{type(self).__name__}()"

    def prototypes(
        self, features: torch.Tensor, mask: torch.Tensor, *, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the masks as foreground ``(S, h w)`` and what is not mask as background.

        Args:
            features: ``(S, C, h, w)``; only their size matters.
            mask: ``(S, H, W)`` in [0, 1].
            window: Not used.
        """
        del window
        inside = functional.interpolate(mask[:, None].float(), features.shape[-2:], mode="area")
        return inside.flatten(1), 1 - inside.flatten(1)

    def score(self, query: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        """Return the mean mask for every query, ``(B, h, w)``.

        Args:
            query: ``(B, C, h, w)``, as large as the support's features.
            prototypes: ``(S, h w)``.
        """
        height, width = query.shape[-2:]
        return prototypes.mean(dim=0).reshape(1, height, width).expand(len(query), -1, -1)
