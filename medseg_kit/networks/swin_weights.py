"""Start a Swin-Unet from the ImageNet weights of Swin-T (``swin_tiny_patch4_window7_224``).

The encoder takes them and so does the mirrored decoder, as Swin-Unet's authors do: Cao et al., ECCV
Workshops 2022 (https://arxiv.org/abs/2105.05537). Nothing is downloaded.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from medseg_kit.typing import PathLike, UserError

if TYPE_CHECKING:
    from medseg_kit.typing import StateDict

_logger = logging.getLogger(__name__)

# Names inside a block or stage: those of the published weights and ours.
_RENAMED = (
    ("patch_embed.", "embedding."),
    (".norm1.", ".norm."),
    (".attn.qkv.", ".attention.projection.qkv."),
    (".attn.proj.", ".attention.output."),
    (".attn.relative_position_bias_table", ".attention.position.relative_position_bias_table"),
    (".norm2.", ".feed_forward.norm."),
    (".mlp.fc1.", ".feed_forward.mlp.linear1."),
    (".mlp.fc2.", ".feed_forward.mlp.linear2."),
)
# The classifier and what every network computes itself.
_NOT_NEEDED = re.compile(r"(^head\.)|(relative_position_index$)|(attn_mask$)")


@dataclass(frozen=True)
class LoadReport:
    """What was loaded.

    Attributes:
        path: The file.
        encoder: Number of tensors loaded outside the decoder.
        decoder: Number of tensors copied to the mirrored decoder.
        left_out: Names in the file that have no place, or another shape, in the network.
    """

    path: str
    encoder: int
    decoder: int
    left_out: tuple[str, ...]


def load_swin_weights(network: nn.Module, path: PathLike) -> LoadReport:
    """Load the tensors of a Swin checkpoint that fit into a `SwinUNet2D`, in place.

    Args:
        network: The network.
        path: File of a state dict, plain or under the key "model" or "state_dict", with the
            published names or with those of a `SwinUNet2D`.

    Returns:
        What was loaded; also written to the log.

    Raises:
        UserError: If the file cannot be read or most of its tensors do not fit.
    """
    weights = _read(path)
    fitting, left_out = _fit(weights, network.state_dict())
    decoder = sum(key.startswith("decoder.") for key in fitting)
    encoder = len(fitting) - decoder
    # Bias tables fit at any width: a few tensors that fit are no sign of the right file.
    if encoder <= len(left_out):
        raise UserError(
            f"{path}: only {encoder} of its {len(weights)} tensors fit the network (first key: "
            f"{next(iter(weights), None)}); pretrained_path needs swin_tiny_patch4_window7_224 and "
            "a network of embed_dim 96 and patch_size 4, or weights of a Swin-Unet of its own sizes"
        )
    network.load_state_dict(fitting, strict=False)
    report = LoadReport(str(path), encoder, decoder, tuple(left_out))
    _logger.info(
        "%s: %d tensors loaded into the encoder and %d into the decoder; left out: %s",
        report.path,
        report.encoder,
        report.decoder,
        ", ".join(report.left_out) or "none",
    )
    return report


def _fit(weights: StateDict, own: StateDict) -> tuple[StateDict, list[str]]:
    """Return the published tensors under our names, and the names of those without a place."""
    num_stages = 1 + max(int(key.split(".")[1]) for key in own if key.startswith("encoder."))
    fitting: StateDict = {}
    left_out = []
    for key, value in weights.items():
        if _NOT_NEEDED.search(key):
            continue
        places = [
            place
            for place in _places(key, num_stages)
            if place in own and own[place].shape == value.shape
        ]
        fitting.update(dict.fromkeys(places, value))
        if not places:
            left_out.append(key)
    return fitting, left_out


def _places(key: str, num_stages: int) -> list[str]:
    """Return where a published tensor goes: the encoder and, for blocks, the decoder's mirror."""
    for theirs, ours in _RENAMED:
        key = key.replace(theirs, ours)
    match = re.match(r"layers\.(\d+)\.(.*)", key)
    if match is None:
        return [key]
    stage, rest = int(match[1]), match[2]
    mirrored = [f"decoder.{num_stages - 2 - stage}.{rest}"] if rest.startswith("blocks.") else []
    return [f"encoder.{stage}.{rest}", *mirrored]


def _read(path: PathLike) -> StateDict:
    if not Path(path).is_file():
        raise UserError(f"pretrained_path {path} does not exist; give a file or leave it out")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not a file of weights that torch can read safely") from error
    for name in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = content.items() if isinstance(content, Mapping) else ()
    return {str(key): value for key, value in tensors if isinstance(value, torch.Tensor)}
