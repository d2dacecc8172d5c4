"""JSON-schema validation whose errors name the file, the place and the value."""

from __future__ import annotations

import functools
import importlib.resources
import json
from typing import Any

import jsonschema

from medseg_kit.typing import UserError

MAX_PROBLEMS_SHOWN = 10


def check_schema(content: object, schema_name: str, *, source: str) -> None:
    """Check parsed JSON or YAML against one of the package's schemas.

    Args:
        content: What the file holds, parsed.
        schema_name: File below ``medseg_kit/data/schemas``, such as ``datalist.schema.json``.
        source: Name of the file, for the message.

    Raises:
        UserError: When the content does not follow the schema; lists every problem with its place.
    """
    problems = sorted(_validator(schema_name).iter_errors(content), key=lambda e: e.json_path)
    if not problems:
        return
    lines = [f"{_place(error)}: {_explain(error)}" for error in problems[:MAX_PROBLEMS_SHOWN]]
    if len(problems) > MAX_PROBLEMS_SHOWN:
        lines.append(f"and {len(problems) - MAX_PROBLEMS_SHOWN} more")
    raise UserError(f"{source} does not follow {schema_name}: " + "; ".join(lines))


@functools.cache
def _validator(schema_name: str) -> jsonschema.Draft202012Validator:
    folder = importlib.resources.files("medseg_kit.data") / "schemas"
    text = (folder / schema_name).read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def _place(error: jsonschema.ValidationError) -> str:
    return error.json_path.removeprefix("$").removeprefix(".") or "top level"


def _explain(error: jsonschema.ValidationError) -> str:
    """Shorten messages that would otherwise repeat a whole document."""
    schema: Any = error.schema
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = sorted(schema.get("properties", {}))
        unknown = sorted(set(map(str, error.instance)) - set(known))
        if known:
            return f"unknown key(s) {', '.join(unknown)}; known are {', '.join(known)}"
    if error.validator in {"oneOf", "anyOf", "const", "not"} and "description" in schema:
        return f"should be: {schema['description']}"
    return error.message if len(error.message) < 300 else error.message[:297] + "..."
