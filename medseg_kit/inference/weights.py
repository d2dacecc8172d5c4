"""Loading a bundle's trained weights; where there are none, the error says how to make them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from medseg_kit.bundle.weights import load_strictly, read_weights
from medseg_kit.typing import PathLike, UserError


def load_weights(network: nn.Module, checkpoint: PathLike) -> nn.Module:
    """Load a bundle's weights strictly into its network and return the network.

    Args:
        network: The deployed network; half-precision weights are converted to its own precision.
        checkpoint: ``models/model.pt`` of the bundle, a bare state dict.

    Raises:
        UserError: If the file is missing or damaged, or does not match the network.
    """
    check_weights_exist(checkpoint)
    load_strictly(network, read_weights(checkpoint), source=checkpoint)
    return network


def check_weights_exist(checkpoint: PathLike) -> None:
    """Stop when there are no weights; of a bundle without any, name the training command.

    Args:
        checkpoint: ``models/model.pt`` of the bundle, or another file of weights.

    Raises:
        UserError: If there is no such file.
    """
    path = Path(checkpoint)
    if path.is_file():
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the file of weights, such as {path}/model.pt")
    config = path.parent.parent / "configs" / "train.yaml"
    if not config.is_file():
        raise UserError(f"{path} does not exist; give a file of trained weights (a state dict)")
    raise UserError(
        f"{path} does not exist: the bundle has no trained weights. Train it with: python -m"
        f" monai.bundle run --config_file {config} --dataset_dir DATA --output_dir RUN, and give"
        " --weights RUN/model.pt"
    )
