"""What the ``_target_`` of a component names, and the arguments that it takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pydoc import locate
from typing import Any

from monai.bundle.config_item import ComponentLocator
from monai.bundle.utils import ID_SEP_KEY

OWN = "medseg_kit."
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def iterate_items(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every id of a configuration in MONAI's ``a::b`` form, list positions included."""
    yield prefix, content
    items: Any = content.items() if isinstance(content, Mapping) else ()
    if isinstance(content, list):
        items = enumerate(content)
    for key, value in items:
        yield from iterate_items(value, f"{prefix}{ID_SEP_KEY}{key}" if prefix else str(key))


def component_parameters(component: Any) -> frozenset[str]:
    """Return the argument names of a component's ``_target_``; empty when it has none."""
    target = component.get("_target_") if isinstance(component, Mapping) else None
    found = find_target(target) if isinstance(target, str) else None
    return frozenset() if found is None else frozenset(parameters_of(found))


@functools.cache
def find_target(target: str) -> Any:
    """Return what a ``_target_`` names; None if it is an expression, or nothing callable.

    Args:
        target: Full name, or that of a component of MONAI.
    """
    if target.startswith(("$", "@", "%")):
        return None
    if "." not in target:
        modules = ComponentLocator().get_component_module_name(target)
        module = modules[0] if isinstance(modules, list) else modules
        target = f"{module}.{target}" if module else target
    found: Any = locate(target)
    return found if callable(found) else None


def parameters_of(found: Any) -> dict[str, inspect.Parameter]:
    """Return a callable's arguments by name, with those that a class passes on as ``**options``."""
    bases = list(found.__mro__[1:]) if inspect.isclass(found) else []
    named: dict[str, inspect.Parameter] = {}
    for owner in (found, *bases):
        try:
            parameters = inspect.signature(owner).parameters.values()
        except ValueError:  # a built-in type says nothing
            break
        named = {p.name: p for p in parameters if p.kind in NAMED} | named
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return named


def check_components(config: Mapping[str, Any], name: str) -> list[str]:
    """Return the ``_target_`` that do not exist, and the arguments that theirs do not take.

    Args:
        config: Composed configuration.
        name: What to call it in the messages.
    """
    problems = []
    for identifier, component in iterate_items(config):
        target = component.get("_target_") if isinstance(component, Mapping) else None
        if not isinstance(target, str) or target.startswith(("$", "@", "%")):
            continue
        found = find_target(target)
        if found is None:
            problems.append(f"{name}: {identifier}: _target_ {target} does not exist")
            continue
        problems += [
            f"{name}: {identifier}: {target} {problem}" for problem in _misfits(found, component)
        ]
    return problems


def _misfits(found: Any, component: Mapping[str, Any]) -> list[str]:
    """Return which arguments of a component its callable does not take, and which it lacks."""
    try:
        parameters = inspect.signature(found).parameters
    except ValueError:  # a built-in says nothing
        return []
    passed_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if passed_on and not found.__module__.startswith(OWN):
        return []  # to where only its code says
    known = set(parameters_of(found))
    given = {key for key in component if not key.startswith("_")}
    problems = []
    for key in sorted(given - known):
        close = get_close_matches(key, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        problems.append(f"takes no argument {key}{hint}")
    if component.get("_mode_", "default") != "default":
        return problems  # a function whose caller gives the rest
    needed = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind in NAMED and key not in given
    ]
    return problems + [f"needs the argument {key}" for key in needed]
