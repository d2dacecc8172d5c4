"""FedBN: normalisation layers stay with their site (Li et al. 2021, https://arxiv.org/abs/2102.07623)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from medseg_kit.fl.strategies.fedavg import FedAvg
from medseg_kit.fl.strategy import Placement, SiteInfo

# ``N`` is the normalisation in MONAI's ADN blocks: model.0.conv.unit0.adn.N.weight; a ResNet's
# shortcuts are a convolution and a norm: layer2.0.downsample.1.weight
NORM_KEYS = r"(^|\.)(N|bn\d*|\w*norm\d*|downsample\.1)(\.|$)"


class FedBN(FedAvg):
    """Average everything but the normalisation layers; the server keeps those for each site.

    The deployed network gets their mean over the sites, as an unseen site has none of its own.

    Args:
        weighting: As in `FedAvg`.
        norm_keys: Regular expression that finds the keys of normalisation layers.
    """

    def __init__(self, weighting: str = "samples", norm_keys: str = NORM_KEYS) -> None:
        super().__init__(weighting)
        self.norm_keys = re.compile(norm_keys)

    def placement(self, key: str) -> Placement:
        """Return ``per_site_on_server`` for normalisation layers, else ``averaged``."""
        return "per_site_on_server" if self.norm_keys.search(key) else "averaged"

    def initialise(
        self, global_state: Mapping[str, torch.Tensor], sites: Mapping[str, SiteInfo]
    ) -> None:
        """Start from global weights.

        Raises:
            ValueError: If ``norm_keys`` finds nothing, or overlooks a running mean.
        """
        check_norm_keys(global_state, self.norm_keys)
        super().initialise(global_state, sites)


def check_norm_keys(global_state: Mapping[str, torch.Tensor], norm_keys: re.Pattern[str]) -> None:
    """Raise if a pattern does not describe the normalisation layers of a network.

    Raises:
        ValueError: If it matches no key, or overlooks a key that ends in ``running_mean``.
    """
    if not any(norm_keys.search(key) for key in global_state):
        raise ValueError(
            f"norm_keys={norm_keys.pattern!r} matches no key of the network, "
            "so nothing would be kept per site; give the pattern of its normalisation layers"
        )
    for key in global_state:
        if key.endswith("running_mean") and not norm_keys.search(key):
            raise ValueError(
                f"norm_keys={norm_keys.pattern!r} overlooks the batch norm {key}; extend it"
            )
