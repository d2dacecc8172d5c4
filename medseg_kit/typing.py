"""Shared aliases and the one exception that means "the user can fix this"."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    StateDict = dict[str, torch.Tensor]
    Batch = Mapping[str, Any]

PathLike = str | os.PathLike[str]


class UserError(ValueError):
    """A mistake in the input that the user can correct.

    The message names the file or option, the value, and the fix; the command line prints it as one
    line without a stack trace.
    """
