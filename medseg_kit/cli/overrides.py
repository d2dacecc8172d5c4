"""``--set id=value`` and ``--overlay NAME``: a bundle's configuration on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medseg_kit.typing import UserError


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """Return ``id=value`` words as a mapping; a value is JSON, a list of words, or a word.

    >>> parse_overrides(["learning_rate=1e-3", "amp=off", "organs=[liver, spleen]"])
    {'learning_rate': 0.001, 'amp': 'off', 'organs': ['liver', 'spleen']}

    Raises:
        UserError: For a word without an id or a value, or a list that cannot be read.
    """
    overrides: dict[str, Any] = {}
    for item in items:
        identifier, equals, text = item.partition("=")
        if not identifier or not equals:
            raise UserError(f"--set {item}: write id=value, e.g. --set learning_rate=0.001")
        overrides[identifier.strip()] = _value(item, text.strip())
    return overrides


def overlay_file(overlay: str) -> str:
    """Return the configuration that ``--overlay`` names, with or without its ending."""
    return f"methods/{overlay.removesuffix('.yaml')}.yaml"


def _value(item: str, text: str) -> Any:
    import json

    import yaml

    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if text[:1] not in ("[", "{"):
            return text
    try:
        return yaml.safe_load(text)  # a list of words without quotes
    except yaml.YAMLError as error:
        raise UserError(f"--set {item}: cannot be read; write e.g. id=[a, b]") from error
