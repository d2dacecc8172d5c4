"""What kind of value an id of a configuration takes, as far as its present value tells."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from monai.bundle import ConfigParser
from monai.bundle.utils import EXPR_KEY, ID_REF_KEY, ID_SEP_KEY, MACRO_KEY

from medseg_kit.bundle.targets import find_target, iterate_items, parameters_of

# How MONAI's references, expressions and macros begin: text for any value
_EVALUATED = (ID_REF_KEY, EXPR_KEY, MACRO_KEY)
# What a parameter is declared to be where text is right
_TEXT = re.compile(r"\b(str|PathLike|Literal|Any|object)\b")


def wanted_kind(config: Mapping[str, Any], identifier: str, value: Any) -> str | None:
    """Return what an id takes, in words, if that is no text and the value is text; else None.

    Text is right where the present value is text or null, where it is a reference or an expression,
    and where a component that takes the value declares that it may be text.

    Args:
        config: Merged configuration.
        identifier: Id in MONAI's ``a::b`` form.
        value: What shall stand there.
    """
    if not isinstance(value, str) or value.startswith(_EVALUATED):
        return None
    parser = ConfigParser({**config})
    wanted = _in_words(parser.get(identifier)) if identifier in parser else None
    takes_text = any(_TEXT.search(declared) for declared in _declared(config, identifier))
    return None if takes_text else wanted


def _in_words(value: Any) -> str | None:
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list) and value and all(_in_words(item) == "a number" for item in value):
        return "a list of numbers"
    return None


def _declared(config: Mapping[str, Any], identifier: str) -> Iterator[str]:
    """Yield what the components that take an id's value, itself or by reference, declare it."""
    references = {ID_REF_KEY + identifier, ID_REF_KEY + identifier.replace(ID_SEP_KEY, "#")}
    for place, content in iterate_items(config):
        if place != identifier and not (isinstance(content, str) and content in references):
            continue
        parent, _, argument = place.rpartition(ID_SEP_KEY)
        component = ConfigParser({**config}).get(parent) if parent else None
        target = component.get("_target_") if isinstance(component, Mapping) else None
        found = find_target(target) if isinstance(target, str) else None
        if found is not None and argument in (parameters := parameters_of(found)):
            yield _annotation(found, parameters[argument])


def _annotation(found: Any, parameter: inspect.Parameter) -> str:
    """Return what a parameter is declared to be, aliases resolved; "Any" if nothing is said."""
    owners = [getattr(kind, "__init__", kind) for kind in getattr(found, "__mro__", ())]
    for owner in (*owners, found):
        try:
            hints = get_type_hints(owner)
        except (NameError, TypeError, AttributeError):  # names for type checkers alone
            continue
        if parameter.name in hints:
            return str(hints[parameter.name])
    return "Any" if parameter.annotation is parameter.empty else str(parameter.annotation)
