"""Loading a bundle's trained weights, with errors that name the fix."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import nn

from medseg_kit.typing import PathLike, StateDict, UserError

_SHOWN_KEYS = 3


def load_weights(network: nn.Module, checkpoint: PathLike) -> nn.Module:
    """Load a state dict strictly into a network and return the network.

    Args:
        network: The deployed network; half-precision weights are converted to its own precision.
        checkpoint: ``models/model.pt``: a state dict, bare or under the key ``model``.

    Raises:
        UserError: If the file is missing or damaged, or does not match the network.
    """
    path = Path(checkpoint)
    weights = read_weights(path)
    own = network.state_dict()
    problems = [
        *_list("missing", [key for key in own if key not in weights]),
        *_list("unexpected", [key for key in weights if key not in own]),
        *_list(
            "of another shape",
            [
                f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
                for key in own
                if key in weights and weights[key].shape != own[key].shape
            ],
        ),
    ]
    if problems:
        raise UserError(
            f"{path} does not match the network: {'; '.join(problems)}. Use the weights that this "
            "configuration trained, or the network_def that the weights were trained with"
        )
    network.load_state_dict(weights)
    return network


def read_weights(path: Path) -> StateDict:
    """Return the state dict in a file.

    Args:
        path: A state dict, bare or under the key ``model``.

    Raises:
        UserError: If the file is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; {_training_advice(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is not a file of weights ({reason}); copy it again, or {_training_advice(path)}"
        ) from error
    weights = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        raise UserError(f"{path} holds no state dict; save network.state_dict() there")
    return weights


def _training_advice(path: Path) -> str:
    config = path.parent.parent / "configs" / "train.yaml"
    return f"train it with: python -m monai.bundle run --config_file {config}"


def _list(title: str, keys: list[str]) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return [f"{title}: {', '.join(keys[:_SHOWN_KEYS])}{more}"]
