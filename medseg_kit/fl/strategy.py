"""The server's side of a federation: tensors and numbers in, tensors and numbers out, no transport.

A strategy says where each key of the state dict lives (`placement`) and how much each site counts
for it (`weight`); the base class does the rest. Every engine (one process, NVIDIA FLARE) calls the
same verbs: `initialise`, then per round `configure` and `accept` for each site, and `finish`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from medseg_kit.fl.state import digest, select, weighted_mean

if TYPE_CHECKING:
    from medseg_kit.typing import StateDict

Placement = Literal["averaged", "per_site_on_server", "never_leaves"]


@dataclass(frozen=True)
class SiteInfo:
    """What the server knows about a site, from its handshake.

    Args:
        name: Name of the site.
        num_samples: Training cases, or what its loader counts instead (slices an epoch).
        annotated: Organs that the site labels.
        keys: State-dict keys that the site exchanges.
    """

    name: str
    num_samples: int
    annotated: tuple[str, ...]
    keys: frozenset[str]


class Strategy(ABC):
    """Synchronises the sites of a federation; subclasses override `placement` and `weight`.

    Placements:
        ``averaged``: the mean over the sites that answered and hold the key goes to every site
        that holds it. Absent sites do not count; a key that no answer holds stays as it was.
        ``per_site_on_server``: each site gets its own last value back; the mean over the sites
        that answered serves as the global (deployed) value only.
        ``never_leaves``: the site does not send it, and the server never has it.

    Attributes:
        global_state: The current global weights.
        personal: Per site, the keys that the server keeps for that site alone.
    """

    def __init__(self) -> None:
        self.global_state: StateDict = {}
        self.sites: dict[str, SiteInfo] = {}
        self.personal: dict[str, StateDict] = {}
        self._answers: dict[str, StateDict] = {}
        self._samples: dict[str, float] = {}

    def placement(self, key: str) -> Placement:
        """Return where a key lives; depends on the key alone, because the sites ask it, too."""
        del key
        return "averaged"

    @abstractmethod
    def weight(self, key: str, site: str, num_samples: float) -> float:
        """Return how much a site counts in the mean of a key, at least 0; only ratios matter."""

    def initialise(
        self, global_state: Mapping[str, torch.Tensor], sites: Mapping[str, SiteInfo]
    ) -> None:
        """Start from global weights; the sites need not hold all of the keys.

        Raises:
            ValueError: If a site exchanges a key that the global state lacks.
        """
        self.global_state = dict(global_state)
        self.personal = {}
        for site in sites.values():
            self.join(site)

    def join(self, site: SiteInfo) -> None:
        """Admit a site, before round 1 or later; it starts from the current global weights."""
        unknown = sorted(site.keys - self.global_state.keys())
        if unknown:
            raise ValueError(
                f"site {site.name!r} holds {len(unknown)} keys that the global network lacks, "
                f"e.g. {unknown[0]}"
            )
        self.sites[site.name] = site

    def configure(self, round_number: int, site: str) -> StateDict:
        """Return the weights to send to a site; they are not to be changed in place."""
        del round_number
        own = self.personal.get(site, {})
        return {
            key: own.get(key, self.global_state[key])
            for key in sorted(self.sites[site].keys)
            if self.placement(key) != "never_leaves"
        }

    def accept(
        self,
        round_number: int,
        site: str,
        state: Mapping[str, torch.Tensor],
        weight: float,
    ) -> None:
        """Take the answer of a site.

        Args:
            round_number: The round that it belongs to.
            site: A site that has joined.
            state: Its weights after local training.
            weight: Number of samples that it trained on.
        """
        del round_number
        self._answers[site] = dict(state)
        self._samples[site] = float(weight)

    def finish(self, round_number: int) -> dict[str, Any]:
        """Update the global weights from the answers and return the record of the round.

        Raises:
            ValueError: If no site has answered.
        """
        if not self._answers:
            raise ValueError(f"round {round_number}: no site answered")
        groups: dict[tuple[tuple[str, float], ...], list[str]] = {}
        for key in self.global_state:
            weights = self._weights(key)
            if weights:
                groups.setdefault(weights, []).append(key)
        for weights, keys in groups.items():
            wanted = set(keys)
            held = {site: select(self._answers[site], wanted.__contains__) for site, _ in weights}
            self.global_state.update(weighted_mean(held, dict(weights)))
        self._keep_personal()
        record = {"sites": sorted(self._answers), "digest": digest(self.global_state)}
        self._answers, self._samples = {}, {}
        return record

    def deployed_state(self) -> StateDict:
        """Return the weights of the deployed network."""
        return dict(self.global_state)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on, for resumption."""
        return {"global": dict(self.global_state), "personal": self.personal}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the sites join anew."""
        self.global_state = dict(state["global"])
        self.personal = {site: dict(own) for site, own in state["personal"].items()}

    def _weights(self, key: str) -> tuple[tuple[str, float], ...]:
        """Return the answering holders of a key that count, in sorted order, with their weights."""
        if self.placement(key) == "never_leaves":
            return ()
        weights = (
            (site, self.weight(key, site, self._samples[site]))
            for site in sorted(self._answers)
            if key in self._answers[site]
        )
        return tuple((site, weight) for site, weight in weights if weight > 0)

    def _keep_personal(self) -> None:
        for site, state in self._answers.items():
            own = select(state, lambda key: self.placement(key) == "per_site_on_server")
            if own:
                self.personal.setdefault(site, {}).update(own)
