"""The deployed weights of a bundle: read safely, loaded strictly, explained when unfit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medseg_kit.typing import PathLike, UserError

if TYPE_CHECKING:
    from medseg_kit.typing import StateDict

_SHOWN = 3  # names listed in a message
_SHOWN_TEXT = 120  # characters of torch's own, which goes on about safety


def read_weights(path: PathLike) -> StateDict:
    """Return the bare state dict of a weights file.

    Args:
        path: ``models/model.pt`` of a bundle, or the like; read with ``weights_only=True``.

    Raises:
        UserError: If the file is missing, holds anything but tensors by name, or tensors that are
            not finite.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file} does not exist: no trained weights there; train the bundle first")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers let anything through that a file can break
        reason = " ".join(str(error).split())[:_SHOWN_TEXT]
        raise UserError(f"{file}: not a readable weights-only file: {reason}") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file}: holds {type(content).__name__}, not a state dict")
    wrong = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise UserError(
            f"{file}: {_names(wrong)} is no tensor: this is no bare state dict of a network, as the"
            " model.pt is that a training leaves beside its checkpoint"
        )
    infinite = [
        name
        for name, value in content.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if infinite:
        raise UserError(f"{file}: values that are not finite in {_names(infinite)}")
    return content


def load_strictly(network: torch.nn.Module, state: StateDict, *, source: PathLike) -> None:
    """Load a state dict whose names and shapes are exactly the network's.

    Args:
        network: Network to fill; half-precision values are cast to its own dtype.
        state: Tensors by name.
        source: File the state comes from, for the message.

    Raises:
        UserError: If names or shapes differ; counts them and names the first ones.
    """
    own = network.state_dict()
    problems = []
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    for what, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", shapes),
    ):
        if names:
            problems.append(f"{len(names)} {what} ({_names(names)})")
    if problems:
        raise UserError(
            f"{source} does not fit {type(network).__name__}: {'; '.join(problems)}; "
            "use the weights of this bundle's version"
        )
    network.load_state_dict(dict(state), strict=True)


def _names(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
