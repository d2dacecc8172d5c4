"""Requests and replies as NVIDIA FLARE's models, and what a job may ask of a site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from medseg_kit.fl.messages import Reply, Request
from medseg_kit.typing import UserError

if TYPE_CHECKING:
    from medseg_kit.typing import StateDict

META = "medseg"
CODE_MARKS = ("$", "@", "%")
CODE_IDS = ("_target_", "_requires_", "imports", "initialize", "run", "finalize")
PLACES = ("_dir", "_path", "_root", "checkpoint", "registration")  # ends of ids that name a place


def to_model(message: Request | Reply) -> FLModel:
    """Return a message as a FLARE model: weights as NumPy arrays, the rest as metadata."""
    return FLModel(
        params_type=ParamsType.FULL,
        params={key: value.numpy() for key, value in message.state.items()},
        current_round=message.round_number,
        meta={META: message.meta()},
    )


def to_request(model: FLModel) -> Request:
    """Return the request in a FLARE model."""
    return Request(**model.meta[META], state=_state(model))


def to_reply(model: FLModel) -> Reply:
    """Return the reply in a FLARE model."""
    return Reply(**model.meta[META], state=_state(model))


def received(model: FLModel, request: Request, site: str) -> Reply:
    """Return a site's reply; what cannot be read costs the site its round, not the federation.

    Args:
        model: What arrived.
        request: What it answers.
        site: Name of the sender, as the platform knows it.
    """
    try:
        reply = to_reply(model)
        if not isinstance(reply.content, dict):
            raise TypeError("content is no mapping")
    except Exception as error:  # noqa: BLE001 - a site may send anything
        problem = f"unreadable answer: {type(error).__name__}"
        return Reply(site, request.kind, request.round_number, error=problem)
    reply.site = site
    return reply


def scalar_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides that a job may carry: scalars only, as a configuration is code.

    Raises:
        UserError: If an id or a value could make a site run something else.
    """
    for identifier, value in overrides.items():
        parts = identifier.replace("::", "#").split("#")
        if any(part in CODE_IDS for part in parts):
            raise UserError(f"override {identifier}: a job may not change what a site runs")
        is_path = isinstance(value, str) and any(mark in value for mark in ("/", "\\", ".."))
        if is_path or parts[-1].endswith(PLACES):
            raise UserError(
                f"override {identifier}={value}: a job may not name a place at a site; a site names"
                " its own in its site file"
            )
        if isinstance(value, str) and (value.startswith(CODE_MARKS) or set(value) & set("{}")):
            raise UserError(f"override {identifier}={value}: a job may carry plain values only")
        if not isinstance(value, bool | int | float | str):
            raise UserError(
                f"override {identifier}={value}: a job may carry numbers, words and true or false; "
                "put anything else into a method overlay of the bundle"
            )
    return dict(overrides)


def _state(model: FLModel) -> StateDict:
    params = model.params or {}
    return {key: torch.tensor(np.asarray(value)) for key, value in params.items()}
