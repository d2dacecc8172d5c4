"""The options that a training really had, those left at their defaults included."""

from __future__ import annotations

import functools
import inspect
import math
from pydoc import locate
from typing import Any

from monai.bundle import ConfigComponent

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


def describe_component(item: Any) -> Any:
    """Return the arguments of a configuration's component that is resolved but not built.

    Args:
        item: ``parser.get_parsed_content(id, instantiate=False)``, or what stands in one.

    Returns:
        ``{"type": ..., argument: value, ...}``, with the plain defaults of what is not given.
    """
    if isinstance(item, ConfigComponent):
        given = {key: value for key, value in item.get_config().items() if key[:1] != "_"}
        target = item.resolve_module_name()
        found = locate(target) if isinstance(target, str) else target
        parameters = inspect.signature(found).parameters.values() if callable(found) else ()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        described = {key: describe_component(value) for key, value in (defaults | given).items()}
        return {"type": str(target), **described}
    if isinstance(item, list | tuple):
        return [describe_component(value) for value in item]
    if isinstance(item, dict):
        return {str(key): describe_component(value) for key, value in item.items()}
    return options_of(item)


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
