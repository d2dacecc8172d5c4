"""Packing trained weights into a bundle: the deployed network only, in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medseg_kit.bundle.config import load_config
from medseg_kit.bundle.paths import resolve_bundle
from medseg_kit.bundle.record import warn_of_differences
from medseg_kit.bundle.weights import load_strictly, read_weights
from medseg_kit.files import replacing
from medseg_kit.typing import PathLike, UserError

if TYPE_CHECKING:
    from medseg_kit.typing import StateDict

MAX_MEGABYTES = 25


def pack_weights(bundle: PathLike, weights: PathLike) -> Path:
    """Write ``models/model.pt`` of a bundle from trained weights.

    Args:
        bundle: Name or path of the bundle.
        weights: State dict of the network that ``inference.yaml`` deploys.

    Returns:
        The written file.

    Raises:
        UserError: If the weights do not fit the network, or the file would exceed 25 MB.
    """
    root = resolve_bundle(bundle)
    parser = load_config(root, ["inference.yaml"])
    warn_of_differences(weights, parser)
    network = parser.get_parsed_content("network_def")
    load_strictly(network, read_weights(weights), source=weights)
    target = root / "models" / "model.pt"
    with replacing(target) as file:
        torch.save(half_precision(network.state_dict()), file)
        megabytes = file.stat().st_size / 1e6
        if megabytes > MAX_MEGABYTES:
            raise UserError(
                f"{root.name}: the weights take {megabytes:.1f} MB, more than {MAX_MEGABYTES}; "
                "ship a smaller variant of the network"
            )
    return target


def half_precision(state: StateDict) -> StateDict:
    """Return a copy with kernels and matrices in half precision, the rest as it is.

    Vectors stay: they are small, and the running variance of a deep batch norm can exceed the
    range of half precision.

    >>> half_precision({"a": torch.ones(2, 2), "b": torch.ones(2)})["a"].dtype
    torch.float16
    """
    return {
        name: value.half() if value.is_floating_point() and value.dim() > 1 else value.clone()
        for name, value in state.items()
    }
