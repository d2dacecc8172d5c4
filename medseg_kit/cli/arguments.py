"""Strict command-line arguments: everything is checked against the signature before fire runs it.

python-fire runs a command before it complains about a misspelt option, turns ``1e3`` into a number
where a path was meant, and finds ``-o`` ambiguous beside ``--overlap``. So options are normalised
and checked here first, and each parameter is parsed by its annotation.
"""

from __future__ import annotations

import inspect
import os
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin, get_type_hints

SHORT_OPTIONS = {"i": "input", "o": "out"}
_NUMBER = re.compile(r"-(\d|\.\d)")
_ITEM = re.compile(r"""(?:\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|"[^"]*"|'[^']*'|[^,])+""")
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class UsageError(ValueError):
    """A command line that does not fit the command; nothing has run yet."""


def call(function: Callable[..., Any], arguments: Sequence[str]) -> Any:
    """Return what a command function returns for a command line.

    Args:
        function: Command; its annotations say how each argument is read. ``str`` and path
            arguments keep their text, ``list`` ones are split at commas, ``bool`` ones are
            switches.
        arguments: Words of the command line after the command's name.

    Raises:
        UsageError: For an unknown, doubled, missing or unreadable argument, before anything runs.
    """
    import fire
    from fire.decorators import SetParseFn, SetParseFns

    tokens = normalise(function, arguments)
    kinds = [item.kind for item in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        SetParseFn(str)(function)  # without it fire guesses the type of each further word
    SetParseFns(**value_parsers(function))(function)
    return fire.Fire(function, command=tokens, serialize=lambda _result: None)


def normalise(function: Callable[..., Any], arguments: Sequence[str]) -> list[str]:
    """Return a checked command line in which every option has the form ``--name=value``.

    Args:
        function: Command whose signature decides.
        arguments: Words of the command line after the command's name.

    Raises:
        UsageError: If the command line does not fit the signature.
    """
    parameters = inspect.signature(function).parameters
    parsers = value_parsers(function)
    options: dict[str, str] = {}
    positional: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "--":
            positional += words
            break
        if not _is_option(word):
            positional.append(word)
            continue
        name, value = _read_option(word, words, parameters, parsers)
        if name in options and not isinstance(parsers.get(name), _ListReader):
            raise UsageError(f"option {_flag(name)} is given twice")
        options[name] = f"{options[name]},{value}" if name in options else value
    _check_complete(parameters, options, positional)
    for name, value in options.items():
        _check_value(name, value, parsers)
    leading = [name for name, item in parameters.items() if item.kind is _NAMED[0]]
    for name, value in zip(leading, positional, strict=False):
        _check_value(name, value, parsers)
    given = [f"--{name}={value}" for name, value in options.items()]
    bound = [f"--{name}={value}" for name, value in zip(leading, positional, strict=False)]
    return bound + positional[len(bound) :] + given


def value_parsers(function: Callable[..., Any]) -> dict[str, Callable[[str], Any]]:
    """Return for each named parameter the function that reads its text.

    Args:
        function: Command; unannotated parameters are read by fire.
    """
    hints = get_type_hints(function)
    parsers = {}
    for name, parameter in inspect.signature(function).parameters.items():
        reader = _reader(hints.get(name))
        if parameter.kind in _NAMED and reader is not None:
            parsers[name] = reader
    return parsers


def expand_short_option(letter: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    """Return the option a letter stands for: ``-i`` input, ``-o`` out, or a unique first letter.

    Args:
        letter: What follows the single hyphen.
        parameters: Parameters of the command; the letter comes back when nothing matches.
    """
    if letter in SHORT_OPTIONS:
        preferred = SHORT_OPTIONS[letter]
        names = (preferred, f"{preferred}_dir", f"{preferred}put")
        return next((name for name in names if name in parameters), letter)
    matching = [name for name in parameters if name.startswith(letter)]
    return matching[0] if len(matching) == 1 else letter


@dataclass(frozen=True)
class _ListReader:
    """Reads items separated by commas; such an option may also be repeated."""

    element: Callable[[str], Any]

    def __call__(self, text: str) -> list[Any]:
        return [self.element(item) for item in _split(text)]


def _reader(annotation: Any) -> Callable[[str], Any] | None:
    plain = _plain(annotation)
    if plain is bool:
        return _read_bool
    if plain in (int, float, str):
        return _READERS[plain]
    if isinstance(plain, type) and issubclass(plain, os.PathLike):
        return str
    origin = get_origin(plain)
    if isinstance(origin, type) and issubclass(origin, (list, tuple, Sequence)):
        return _ListReader(_reader(get_args(plain)[0]) or str)
    return None


def _plain(annotation: Any) -> Any:
    """Return an annotation without ``None``; a union with ``str`` (a path) is ``str``."""
    if get_origin(annotation) in (Union, types.UnionType):
        members = [item for item in get_args(annotation) if item is not type(None)]
        return str if str in members else members[0]
    return annotation


def _split(text: str) -> list[str]:
    """Return the items between commas; commas inside brackets or quotes separate nothing."""
    text = text.strip()
    if text[:1] in ("[", "(") and text[-1:] in ("]", ")"):
        text = text[1:-1]
    items = _ITEM.findall(text)
    return [item.strip().strip("'\"") for item in items if item.strip()]


def _read_bool(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("use true or false")


def _read_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("use a whole number") from None


def _read_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("use a number") from None


_READERS: dict[Any, Callable[[str], Any]] = {int: _read_int, float: _read_float, str: str}


def _is_option(word: str) -> bool:
    return len(word) > 1 and word.startswith("-") and not _NUMBER.match(word)


def _read_option(
    word: str,
    following: list[str],
    parameters: Mapping[str, inspect.Parameter],
    parsers: Mapping[str, Callable[[str], Any]],
) -> tuple[str, str]:
    """Return an option's parameter name and text, taking its value from the words that follow."""
    text, equals, value = word.lstrip("-").partition("=")
    short = not word.startswith("--") and len(text) == 1
    name = expand_short_option(text, parameters) if short else text.replace("-", "_")
    negated = name.removeprefix("no").removeprefix("_")
    if name not in parameters and name.startswith("no") and parsers.get(negated) is _read_bool:
        return negated, "false"
    _check_known(word, name, parameters)
    if equals:
        return name, value
    if parsers.get(name) is _read_bool:
        return name, "true"
    if not following or (_is_option(following[0]) and name in parameters):
        raise UsageError(f"option {_flag(name)} needs a value")
    return name, following.pop(0)


def _check_known(word: str, name: str, parameters: Mapping[str, inspect.Parameter]) -> None:
    kinds = {key: item.kind for key, item in parameters.items()}
    if kinds.get(name) in _NAMED or inspect.Parameter.VAR_KEYWORD in kinds.values():
        return
    known = [key for key, kind in kinds.items() if kind in _NAMED]
    close = get_close_matches(name, known, n=1)
    if close:
        hint = f"did you mean {_flag(close[0])}?"
    else:
        hint = f"options: {', '.join(_flag(key) for key in known) or 'none'}"
    raise UsageError(f"unknown option {word.partition('=')[0]}; {hint}")


def _check_complete(
    parameters: Mapping[str, inspect.Parameter],
    options: Mapping[str, str],
    positional: Sequence[str],
) -> None:
    """Raise unless positional words and options fill the parameters exactly once."""
    leading = [name for name, item in parameters.items() if item.kind is _NAMED[0]]
    variadic = any(item.kind is inspect.Parameter.VAR_POSITIONAL for item in parameters.values())
    if len(positional) > len(leading) and not variadic:
        raise UsageError(f"unexpected argument '{positional[len(leading)]}'")
    for name in leading[: len(positional)]:
        if name in options:
            raise UsageError(f"{name.upper()} is given twice: as an argument and as {_flag(name)}")
    filled = {*leading[: len(positional)], *options}
    for name, item in parameters.items():
        if item.kind in _NAMED and item.default is item.empty and name not in filled:
            missing = name.upper() if item.kind is _NAMED[0] else f"option {_flag(name)}"
            raise UsageError(f"{missing} is missing")


def _check_value(name: str, value: str, parsers: Mapping[str, Callable[[str], Any]]) -> None:
    try:
        parsers.get(name, str)(value)
    except ValueError as error:
        raise UsageError(f"option {_flag(name)}: '{value}' does not fit, {error}") from error


def _flag(name: str) -> str:
    return f"--{name}"
