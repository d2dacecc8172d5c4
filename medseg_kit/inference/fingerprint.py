"""Digests that tell whether a prediction would come out the same: of options and of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from torch import nn

# Part of every fingerprint: raise it when the same options give another label map than before.
ALGORITHM = 1


def fingerprint(value: Any) -> str:
    """Return a digest of an object's type and parameters, the same in every process.

    Objects are described by their attributes, recursively; functions by their names. A pipeline
    that remembers its parameters (a subclass of `Compose`) is described by those.

    Args:
        value: Transforms, inferers, numbers, text, tensors, and containers of them.
    """
    return hashlib.sha256(f"{ALGORITHM} {_describe(value, ())}".encode()).hexdigest()


def network_fingerprint(network: nn.Module) -> str:
    """Return a digest of a network's structure and of all its weights.

    Args:
        network: On any device.
    """
    digest = hashlib.sha256(str(network).encode())
    for key, tensor in network.state_dict().items():
        digest.update(key.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _describe(value: Any, parents: tuple[int, ...]) -> str:
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value)
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return hashlib.sha256(_bytes(torch.as_tensor(value))).hexdigest()
    return "..." if id(value) in parents else _describe_parts(value, (*parents, id(value)))


def _describe_parts(value: Any, parents: tuple[int, ...]) -> str:
    if isinstance(value, Mapping):
        items = sorted((str(key), _describe(item, parents)) for key, item in value.items())
        return f"{{{', '.join(f'{key}: {item}' for key, item in items)}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(_describe(item, parents) for item in value))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_describe(item, parents) for item in value)}]"
    return _describe_object(value, parents)


def _describe_object(value: Any, parents: tuple[int, ...]) -> str:
    named = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    name = f"{named.__module__}.{named.__qualname__}"
    attributes = getattr(value, "__dict__", {})
    if named is value or not attributes:
        return name
    if isinstance(value, Compose) and type(value) is not Compose:
        attributes = {key: item for key, item in attributes.items() if key != "transforms"}
    return f"{name}({_describe(attributes, parents)})"
