"""What server and site say to each other: weights by name, numbers and short texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from medseg_kit.typing import StateDict

Kind = Literal["hello", "train", "compare", "validate"]


@dataclass
class Request:
    """A task for one site.

    Args:
        kind: "hello" asks for the handshake, "train" for a round of local training, "compare" for
            the metrics of the weights just trained, "validate" for the metrics of ``state``.
        run_id: Identity of the federation; a site keeps its own state under it.
        round_number: Counts from 1; 0 in the handshake.
        num_rounds: Rounds planned in all, so that schedules run over the whole federation.
        state: Weights, by key.
    """

    kind: Kind
    run_id: str
    round_number: int = 0
    num_rounds: int = 0
    state: StateDict = field(default_factory=dict)

    def meta(self) -> dict[str, Any]:
        """Return everything but the weights, as JSON types."""
        return {name: value for name, value in vars(self).items() if name != "state"}


@dataclass
class Reply:
    """A site's answer.

    Args:
        site: Name of the site.
        kind: That of the request.
        round_number: That of the request.
        content: Counts, metrics, seconds and the names of the losses of a training; the description
            of the site in a handshake.
        error: What went wrong, without paths or patients; None if all went well.
        state: Weights after local training, by key.
    """

    site: str
    kind: Kind
    round_number: int
    content: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    state: StateDict = field(default_factory=dict)

    def meta(self) -> dict[str, Any]:
        """Return everything but the weights, as JSON types."""
        return {name: value for name, value in vars(self).items() if name != "state"}


Ask = Callable[[Mapping[str, Request]], Iterable[Reply]]
"""A transport: sends one request to each named site and yields the replies in any order. A site
without a reply counts as absent."""
