"""The options that a training really had, those left at their defaults included."""

from __future__ import annotations

import functools
import inspect
import json
import math
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigParser

from medseg_kit.bundle.targets import parameters_of
from medseg_kit.typing import PathLike

OWN = "medseg_kit."
SLICES = ("image_size", "window", "intensity", "orientation", "interpolation", "direction")
NAMED = "labelled"  # may name patients; their number is kept
REGISTRATION = (
    "method",
    "region",
    "spline_spacing",
    "nominal_spacing",
    "per_case",
    "which_pairs",
    "budgets",
    "selection",
)
PRETRAINED = "pretrained_path"
COMPONENTS = {
    "network": "network_def",
    "classifier": "classifier",
    "augmentation": "train#augmentation",
    "superpixels": "train#superpixels",
}
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
    arguments = sorted(parameters_of(kind))
    return described | {
        name: options_of(getattr(component, name)) for name in arguments if hasattr(component, name)
    }


def describe_component(parser: ConfigParser, key: str, *, evaluate: bool = True) -> Any:
    """Return the arguments of a configuration's component without building it.

    Args:
        parser: A composed configuration.
        key: Id of the component, or of anything in it.
        evaluate: Give expressions by their value, which may read the data; else as written.

    Returns:
        ``{"type": ..., argument: value, ...}`` with the defaults of what is not given; what is not
        given as a class but by a function or an expression, by its value.
    """
    value = parser[key]
    if isinstance(value, str) and value.startswith("@"):
        return describe_component(parser, value[1:].replace("::", "#"), evaluate=evaluate)
    if isinstance(value, list):
        keys = [f"{key}#{index}" for index in range(len(value))]
        return [describe_component(parser, part, evaluate=evaluate) for part in keys]
    if not isinstance(value, dict):
        written = not evaluate and isinstance(value, str) and value.startswith("$")
        return value if written else options_of(parser.get_parsed_content(key))
    given = {name: f"{key}#{name}" for name in value if name[:1] != "_"}
    if "_target_" not in value:
        return {
            name: describe_component(parser, part, evaluate=evaluate)
            for name, part in given.items()
        }
    kind = locate(str(value["_target_"]))
    if not inspect.isclass(kind):
        return options_of(parser.get_parsed_content(key))
    parameters = parameters_of(kind).values()
    defaults = {p.name: options_of(p.default) for p in parameters if p.default is not p.empty}
    arguments = {
        name: describe_component(parser, part, evaluate=evaluate) for name, part in given.items()
    }
    if arguments.get(PRETRAINED) is not None:
        arguments[PRETRAINED] = "given"  # a path of this machine
    return {"type": _name(kind), **defaults, **arguments}


def describe_components(parser: ConfigParser, *, evaluate: bool = True) -> dict[str, Any]:
    """Return what a training depends on beside its step, as far as its configuration has it.

    The network with all its switches, augmentation, optimiser, superpixels, how slices are cut and
    registered, and all plain values at the top of the configuration (batch size, learning rates,
    ...); of a data set no path and no name.

    Args:
        parser: A composed train.yaml.
        evaluate: As in `describe_component`.
    """
    found: dict[str, Any] = {}
    for name, key in COMPONENTS.items():
        if key in parser:
            found[name] = describe_component(parser, key, evaluate=evaluate)
    given = {key: f"optimizer#{key}" for key in parser["optimizer"] if key != "params"}
    found["optimizer"] = {
        "type" if key == "_target_" else key: describe_component(parser, part, evaluate=evaluate)
        for key, part in given.items()
    }
    found["settings"] = {
        key: options_of(value)
        for key, value in parser.get().items()
        if _is_setting(value) and not key.endswith("_dir")
    }
    if isinstance(budget := parser.get(NAMED), list | dict):
        found["settings"][NAMED] = _numbers(budget)
    if parser.get("registration") is not None:
        found["registration"] = _describe_registration(parser.get_parsed_content("registration"))
    dataset = parser["train#dataset"]
    slices = [key for key in SLICES if key in dataset]
    found["slices"] = {
        key: describe_component(parser, f"train#dataset#{key}", evaluate=evaluate) for key in slices
    }
    return found


def _is_setting(value: Any) -> bool:
    """Whether a value is a plain one that is no path, reference or expression."""
    if isinstance(value, list):
        return bool(value) and all(_is_setting(item) for item in value)
    if isinstance(value, str):
        return not value.startswith(("@", "$", "%")) and "/" not in value and "\\" not in value
    return isinstance(value, PLAIN)


def _numbers(budget: list[Any] | dict[str, Any]) -> Any:
    """Return how many patients, or cases and slices of each, a label budget names."""
    if isinstance(budget, list):
        return len(budget)
    slices = ["all" if chosen is None else len(chosen) for chosen in budget.values()]
    return {"cases": len(budget), "slices": slices}


def _describe_registration(folder: PathLike) -> dict[str, Any]:
    """Return how `medseg register` made a folder; nothing if it has no report."""
    file = Path(folder) / "report.json"
    report = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {key: report[key] for key in REGISTRATION if key in report}


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
