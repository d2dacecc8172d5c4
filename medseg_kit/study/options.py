"""The options that a training really had, those left at their defaults included."""

from __future__ import annotations

import functools
import math
from typing import Any

from medseg_kit.bundle.config import parameter_names

OWN = "medseg_kit."
PLAIN = (bool, int, float, str, type(None))


def options_of(component: Any) -> Any:
    """Return a component's arguments as it keeps them: ``{"type": ..., argument: value, ...}``.

    Arguments that are components or functions of this package are described in the same way; what
    is neither plain nor of this package, such as a network's layers, is named by its type, and a
    number that is not finite, which JSON does not have, by its name.

    Args:
        component: A training step, loss term, augmentation or schedule.
    """
    if isinstance(component, PLAIN):
        is_json = not isinstance(component, float) or math.isfinite(component)
        return component if is_json else str(component)
    if isinstance(component, list | tuple):
        return [options_of(item) for item in component]
    if isinstance(component, dict):
        return {str(key): options_of(value) for key, value in component.items()}
    if isinstance(component, functools.partial):
        return {"type": _name(component.func), **options_of(component.keywords)}
    kind = (
        component if callable(component) and hasattr(component, "__qualname__") else type(component)
    )
    described = {"type": _name(kind)}
    if kind is component or not kind.__module__.startswith(OWN):
        return described
    arguments = sorted(parameter_names(kind))
    return described | {
        name: options_of(getattr(component, name)) for name in arguments if hasattr(component, name)
    }


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
