"""One-shot segmentation network: an encoder, and prototypes of support scans in place of a head.

CoWPro and its federated form FedCoWPro (three parts of an organ, one-way episodes), after ALPNet
(Ouyang et al. 2020, https://arxiv.org/abs/2007.09886). The organs are segmented one by one, each
against its own background; the answers fuse by margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from medseg_kit.networks.support_prototypes import NUM_PARTS, SupportPrototypes
from medseg_kit.typing import UserError

ABSENT = -1  # part of a slice that holds nothing of the organ
# Margin where an organ cannot be: its logit is far below the background's 0, and finite.
NO_MARGIN = -100.0
NEEDS_SUPPORT = (
    "a one-shot network needs the prototypes of a support scan: make them with"
    " `medseg support BUNDLE --image SCAN --label LABEL --out FILE.pt` and give them as --support"
    " FILE.pt, or give the scan itself as --support SCAN --support_label LABEL"
)


class Classifier(Protocol):
    """What turns features into prototypes and scores; see `networks.prototype`."""

    def prototypes(
        self, features: torch.Tensor, mask: torch.Tensor, *, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return foreground ``(P, C)`` and background ``(Q, C)`` prototypes of ``(S, C, h, w)``."""

    def score(self, query: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        """Return the scores ``(B, h, w)`` of features ``(B, C, h, w)``."""


class OneShotNetwork(nn.Module):
    """Segments the organs of its support scans in slices it was never trained to label.

    In training mode the forward returns ``{"features": (B, C, h, w)}``, which an episodic step
    trains; in evaluation mode logits ``(B, 1 + K, H, W)``: 0 for the background and for each organ
    its margin, the foreground score less the background score of its one-way classifier. Plain
    argmax is the fusion rule: background unless an organ wins over its own background, and the
    clearest winner otherwise.

    The prototypes are no part of the state dict: they derive from a patient, and a bundle ships
    without them. The state's keys are ``encoder.*``. Without prototypes nothing is found; the
    inferer (`OneShotInferer`) refuses to run then.

    Args:
        encoder: Slices ``(B, channels, H, W)`` to features ``(B, C, h, w)``.
        classifier: Makes and compares prototypes; has no parameters.
        organs: Names of the organs, in the order of the label values.
    """

    def __init__(self, encoder: nn.Module, classifier: Classifier, organs: Sequence[str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = classifier
        self.organs = tuple(organs)
        self.supports: tuple[SupportPrototypes, ...] = ()
        self.register_buffer("_place", torch.zeros(1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the network is; an encoder may be without parameters."""
        return self.get_buffer("_place").device

    def load_supports(self, supports: Sequence[SupportPrototypes]) -> None:
        """Take the prototypes that the next forwards compare with, such as one a modality.

        Raises:
            UserError: If some are of other organs.
        """
        for number, prototypes in enumerate(supports):
            if prototypes.organs != self.organs:
                raise UserError(
                    f"the support prototypes are of the organs {list(prototypes.organs)}, the"
                    f" network of {list(self.organs)}; make them with `medseg support` of this"
                    " bundle"
                )
            for index in range(len(self.organs)):
                for part in range(NUM_PARTS):
                    sides = (prototypes.foreground[index][part], prototypes.background[index][part])
                    for side, tensor in zip(("foreground", "background"), sides, strict=True):
                        name = f"{side}_{number}_{index}_{part}"
                        self.register_buffer(name, tensor.float().to(self.device), persistent=False)
        self.supports = tuple(supports)

    def extra_repr(self) -> str:
        """Name what is no module, so that a digest of the network depends on it."""
        supports = [each.digest for each in self.supports]
        return f"classifier={self.classifier}, organs={list(self.organs)}, supports={supports}"

    def forward(
        self, image: torch.Tensor, part: torch.Tensor | None = None, support: int = 0
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return logits in evaluation mode, features in training mode.

        Args:
            image: Slices ``(B, channels, H, W)``.
            part: Part 0, 1 or 2 of the organs' extent that a slice belongs to, ``(B,)`` for all
                organs alike or ``(B, K)``; `ABSENT` where the organ is not. Without it a slice is
                compared with the prototypes of all parts.
            support: Position among `supports`.
        """
        features = self.encoder(image)
        if self.training:
            return {"features": features}
        features = features.float()
        if part is not None and part.dim() == 1:
            part = part[:, None].expand(-1, len(self.organs))
        margins = [
            self._margin(features, f"{support}_{index}", None if part is None else part[:, index])
            for index in range(len(self.organs))
        ]
        small = torch.stack(margins, dim=1)
        large = functional.interpolate(small, image.shape[-2:], mode="bilinear")
        return torch.cat([torch.zeros_like(large[:, :1]), large], dim=1)

    def _margin(
        self, features: torch.Tensor, which: str, part: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the margin ``(B, h, w)`` of one organ (support_organ) over its background."""
        if not self.supports:
            return torch.full_like(features[:, 0], NO_MARGIN)
        if part is None:
            every = range(NUM_PARTS)
            sides = [
                torch.cat([self.get_buffer(f"{side}_{which}_{p}") for p in every])
                for side in ("foreground", "background")
            ]
            return self._difference(features, sides[0], sides[1])
        margin = torch.full_like(features[:, 0], NO_MARGIN)
        for number in range(NUM_PARTS):
            chosen = (part == number).nonzero()[:, 0]
            if len(chosen):
                margin[chosen] = self._difference(
                    features[chosen],
                    self.get_buffer(f"foreground_{which}_{number}"),
                    self.get_buffer(f"background_{which}_{number}"),
                )
        return margin

    def _difference(
        self, features: torch.Tensor, foreground: torch.Tensor, background: torch.Tensor
    ) -> torch.Tensor:
        if not len(foreground):  # no support scan has the organ
            return torch.full_like(features[:, 0], NO_MARGIN)
        score = self.classifier.score
        # in float32 also under autocast, as the margins around it
        return (score(features, foreground) - score(features, background)).float()
