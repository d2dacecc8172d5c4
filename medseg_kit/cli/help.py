"""Help texts of the ``medseg`` command, made from summaries, signatures and docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from medseg_kit.cli.arguments import SHORT_OPTIONS, expand_short_option


def overview(commands: Mapping[str, tuple[str, str]], *, group: str = "") -> str:
    """Return the list of commands.

    Args:
        commands: Target and one-line summary by command name.
        group: Show only the commands of this group (``data``).
    """
    shown = {
        name: summary
        for name, (_, summary) in commands.items()
        if not group or name.startswith(f"{group} ")
    }
    width = max(len(name) for name in shown)
    lines = [
        "medseg: medical image segmentation with few labels and without moving images",
        "",
        f"Usage: medseg {group + ' ' if group else ''}COMMAND ...    medseg COMMAND --help",
        "",
        "Commands:",
        *(f"  {name:<{width}}  {summary}" for name, summary in shown.items()),
    ]
    if not group:
        lines += ["", "Example: medseg predict hippocampus_mr_segviz -i scans/ -o labels/"]
    return "\n".join(lines)


def command_help(name: str, function: Callable[..., Any]) -> str:
    """Return usage, options with defaults, and the docstring (which holds an example).

    Args:
        name: Name of the command.
        function: The command.
    """
    parameters = inspect.signature(function).parameters
    usage = [f"Usage: medseg {name}"]
    for item in parameters.values():
        if item.kind is item.VAR_POSITIONAL:
            usage.append(f"[{item.name.upper()} ...]")
        elif item.kind is item.POSITIONAL_OR_KEYWORD and item.default is item.empty:
            usage.append(item.name.upper())
    lines = [" ".join([*usage, "[options]"]), "", inspect.getdoc(function) or ""]
    defaults = [_describe(item, parameters) for item in parameters.values()]
    lines += ["", "Options and defaults:", *(f"  {line}" for line in defaults if line)]
    return "\n".join(lines)


def _describe(item: inspect.Parameter, parameters: Mapping[str, inspect.Parameter]) -> str:
    """Return one option with its short form and default; empty for what the usage line shows."""
    if item.kind in (item.VAR_POSITIONAL, item.VAR_KEYWORD):
        return ""
    letters = [key for key in SHORT_OPTIONS if expand_short_option(key, parameters) == item.name]
    required = item.default is item.empty
    if required and item.kind is item.POSITIONAL_OR_KEYWORD and not letters:
        return ""
    value = "required" if required else repr(item.default)
    if item.default is True:
        value += f"; --no{item.name} turns it off"
    return f"{''.join(f'-{key}, ' for key in letters)}--{item.name}  ({value})"
