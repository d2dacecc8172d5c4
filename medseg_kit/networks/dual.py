"""Two students in one network, so that one forward, one optimiser and one file hold both."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import nn

from medseg_kit.networks.projectors import Projectors
from medseg_kit.networks.taps import Student
from medseg_kit.typing import UserError

Deploy = Literal["first", "second", "mean"]


class DualNetwork(nn.Module):
    """A pair of students, in training both at once and in evaluation the one that is deployed.

    In training mode the forward returns ``{"logits": (l1, l2), "taps": (t1, t2)}`` and, with
    projectors, ``"projected": {scale: (p1, p2)}`` (`Projected`); in evaluation mode one tensor
    ``(B, C, H, W)`` of logits, and only the students that it needs run. The keys of the state are
    ``first.*``, ``second.*`` and ``projectors.*``.

    Args:
        first: First student (the CNN, in the papers).
        second: Second student (the transformer).
        deploy: Whose logits evaluation returns; "mean" averages both.
        projectors: Projection heads of a contrastive loss.

    Raises:
        UserError: If a student has no taps, or ``deploy`` is unknown.
    """

    def __init__(
        self,
        first: nn.Module,
        second: nn.Module,
        *,
        deploy: Deploy = "first",
        projectors: Projectors | None = None,
    ) -> None:
        super().__init__()
        for student in (first, second):
            if not hasattr(student, "forward_features"):
                raise UserError(
                    f"{type(student).__name__} cannot be a student: it has no forward_features; "
                    "use a network of medseg_kit.networks"
                )
        if deploy not in {"first", "second", "mean"}:
            raise UserError(f"deploy is {deploy!r}; it must be 'first', 'second' or 'mean'")
        self.first = first
        self.second = second
        self.projectors = projectors
        self.deploy = deploy

    def students(self) -> DualNetwork:
        """Return the pair without projectors, with the same weights: what a bundle deploys."""
        return DualNetwork(self.first, self.second, deploy=self.deploy)

    def answering(self) -> list[nn.Module]:
        """Return the students whose logits evaluation returns."""
        students = {"first": self.first, "second": self.second}
        return [*students.values()] if self.deploy == "mean" else [students[self.deploy]]

    def forward(self, image: torch.Tensor) -> Any:
        """Segment ``image`` ``(B, in_channels, H, W)``; see the class for the result."""
        return self._both(image) if self.training else self._deployed(image)

    def _both(self, image: torch.Tensor) -> dict[str, Any]:
        first_logits, first_taps = cast("Student", self.first).forward_features(image)
        second_logits, second_taps = cast("Student", self.second).forward_features(image)
        result: dict[str, Any] = {
            "logits": (first_logits, second_logits),
            "taps": (first_taps, second_taps),
        }
        if self.projectors is not None:
            result["projected"] = self.projectors(first_taps, second_taps)
        return result

    def _deployed(self, image: torch.Tensor) -> torch.Tensor:
        if self.deploy == "first":
            return cast("torch.Tensor", self.first(image))
        if self.deploy == "second":
            return cast("torch.Tensor", self.second(image))
        return cast("torch.Tensor", (self.first(image) + self.second(image)) / 2)
