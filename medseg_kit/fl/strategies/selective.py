"""SegViz's selective synchronisation of partially labelled sites.

Kanhere et al. 2023, https://arxiv.org/abs/2301.07074, section 3.1: the representation is averaged
over all sites, the head of an organ comes from the sites that label it. The authors' notebooks do
not write the averaged weights back; this follows the paper.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from medseg_kit.fl.strategies.fedavg import FedAvg
from medseg_kit.fl.strategies.fedbn import NORM_KEYS, check_norm_keys
from medseg_kit.fl.strategy import Placement, SiteInfo

HEAD = re.compile(r"^heads\.([^.]+)\.")
NORMS = ("averaged", "per_site")


class SelectiveSync(FedAvg):
    """Average the representation over all sites, and an organ's own keys over its owners.

    An organ's own keys are those with the organ as a component: its head ``heads.<organ>.*`` and,
    in a network with one set of normalisation layers per task, ``...<organ>...`` in the
    representation (FedBN for partial labels). They are copied from a single owner, averaged by
    samples over several, stay as they were while no owner answers, and go to their holders only.

    Args:
        organs: All organs of the network; every head of the network by default.
        weighting: How sites count in the representation: "equal" (the authors' code) or "samples".
        norm: "averaged", or "per_site" to keep the shared normalisation layers at each site (the
            FedBN option for networks without norms per task; the deployed network gets the mean).
        norm_keys: Regular expression of the normalisation layers, for "per_site".

    Raises:
        ValueError: For another weighting or norm.
    """

    def __init__(
        self,
        organs: Sequence[str] | None = None,
        *,
        weighting: str = "equal",
        norm: str = "averaged",
        norm_keys: str = NORM_KEYS,
    ) -> None:
        super().__init__(weighting)
        self.organs = None if organs is None else set(organs)
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
        self.norm = norm
        self.norm_keys = re.compile(norm_keys)
        self._owned: dict[str, str] = {}

    def placement(self, key: str) -> Placement:
        """Return ``per_site_on_server`` for the shared norms with ``norm="per_site"``."""
        if self.norm == "per_site" and not HEAD.match(key) and self.norm_keys.search(key):
            return "per_site_on_server"
        return "averaged"

    def initialise(
        self, global_state: Mapping[str, torch.Tensor], sites: Mapping[str, SiteInfo]
    ) -> None:
        """Start from the weights of the network with all heads.

        Raises:
            ValueError: If the network's heads are not those of ``organs``, or with
                ``norm="per_site"`` it has no norms, or has norms per task already.
        """
        self._owned = organ_of_keys(global_state)
        heads = set(self._owned.values())
        if self.organs is not None and heads != self.organs:
            raise ValueError(
                f"the network has the heads {sorted(heads)}, the strategy the organs "
                f"{sorted(self.organs)}; give both the same organs"
            )
        if self.norm == "per_site":
            shared = {key: value for key, value in global_state.items() if not HEAD.match(key)}
            per_task = [key for key in shared if key in self._owned]
            if per_task:
                raise ValueError(
                    f"the network has normalisation layers per task ({per_task[0]}), which their "
                    "owners hold already; use norm='averaged' or a network without task norms"
                )
            check_norm_keys(shared, self.norm_keys)
        super().initialise(global_state, sites)

    def load_state_dict(self, state: Mapping[str, dict[str, torch.Tensor]]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self._owned = organ_of_keys(self.global_state)

    def weight(self, key: str, site: str, num_samples: float) -> float:
        """Return the samples of an owner and 0 for others (own keys), else as in `FedAvg`."""
        organ = self._owned.get(key)
        if organ is None:
            return super().weight(key, site, num_samples)
        return num_samples if organ in self.sites[site].annotated else 0.0


def organ_of_keys(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the organ of every key that belongs to one organ; shared keys are left out.

    >>> organ_of_keys({"heads.liver.w": 0, "representation.0.N.norms.liver.w": 0, "stem.w": 0})
    {'heads.liver.w': 'liver', 'representation.0.N.norms.liver.w': 'liver'}

    Raises:
        ValueError: If there is no ``heads.<organ>.*`` key.
    """
    organs = {match.group(1) for match in map(HEAD.match, state) if match}
    if not organs:
        raise ValueError(
            "selective synchronisation needs a network with heads.<organ>.* keys; "
            "use medseg_kit.fl.strategies.fedavg.FedAvg for a plain network"
        )
    found = {}
    for key in state:
        head = HEAD.match(key)
        organ = head.group(1) if head else next((o for o in key.split(".") if o in organs), None)
        if organ is not None:
            found[key] = organ
    return found
