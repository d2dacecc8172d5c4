"""Strict composing of configurations: an override of an unknown id is an error, not a new key.

MONAI accepts unknown ids silently, on its command line too. A bundle closes that gap with two
lines; MONAI's ``$import a.b`` does not bind ``a``, so both name the function as a ``_target_`` and
need no import::

    bundle_root: {_target_: medseg_kit.bundle.paths.find_bundle_root, name: hippocampus_mr_segviz}
    initialize:
      - {_target_: medseg_kit.bundle.config.check_overrides}      # first item
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow, run, run_workflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, ID_SEP_KEY

from medseg_kit.bundle.errors import report_user_errors
from medseg_kit.bundle.kinds import wanted_kind
from medseg_kit.bundle.paths import resolve_bundle, split_file_list
from medseg_kit.bundle.targets import component_parameters, iterate_items
from medseg_kit.data.datalist import DATALIST_NAME
from medseg_kit.typing import PathLike, UserError

_RUN_OPTIONS = frozenset(
    name
    for function in (run, run_workflow, create_workflow, ConfigWorkflow.__init__)
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD
)


def load_config(
    bundle: PathLike,
    files: Sequence[str] = ("inference.yaml",),
    *,
    overrides: Mapping[str, Any] | None = None,
) -> ConfigParser:
    """Return a bundle's merged configuration with metadata, ``bundle_root`` and overrides set.

    Args:
        bundle: Name or path of the bundle.
        files: Configuration files, merged left to right; relative names lie in the bundle's
            ``configs`` folder.
        overrides: Values by id (``train#trainer#max_epochs`` or ``train::trainer::max_epochs``).

    Raises:
        UserError: If the bundle or a file does not exist, a file cannot be read, an override names
            an id that neither exists nor is an argument of the component it belongs to, or puts
            text in the place of a number.
    """
    root = resolve_bundle(bundle)
    configs = root / "configs"
    paths = [configs / name for name in files]
    for path in paths:
        if not path.is_file():
            folder = path.parent if path.parent.is_dir() else configs
            present = ", ".join(sorted(item.name for item in folder.glob("*.yaml"))) or "none"
            raise UserError(f"{path} does not exist; {root.name} has {present} there")
    config = _merge(paths, metadata=[configs / "metadata.json"])
    values = {"bundle_root": str(root), **(overrides or {})}
    fault = _fault(config, values, f"{root.name} ({', '.join(files)})")
    if fault:
        raise UserError(fault)
    parser = ConfigParser(config)
    parser.update({_normalise(key): value for key, value in values.items()})
    return parser


def check_overrides(argv: Sequence[str] | None = None) -> None:
    """Stop ``python -m monai.bundle run`` when an override names an id that does not exist.

    The first item of a bundle's ``initialize`` list; in any other process it does nothing. From
    here on what the user can mend ends the process with one line. A training keeps what it is made
    with beside its weights, and what uses weights is compared with it (`bundle.record`). Reads
    ``--config_file``, ``--args_file``, ``--meta_file`` and ``--tracking`` as MONAI does, accepts
    ``--a::b 1``, ``--a#b 1`` and ``--a#b=1``.

    Args:
        argv: Command line to check instead of the process's own; the program name comes first.

    Raises:
        SystemExit: With one line that names every unknown id and the closest existing one, or text
            in the place of a number. It is no exception that MONAI would wrap, so the line is what
            the user sees.
    """
    arguments = list(sys.argv if argv is None else argv)
    if not _is_monai_run(arguments):
        return
    report_user_errors()
    options = command_line_options(arguments[2:])
    if isinstance(options.get("args_file"), str):
        options = {**ConfigParser.load_config_file(options["args_file"]), **options}
    files = _files(options.get("config_file"))
    if not files:
        return  # MONAI itself complains
    metadata = _files(options.get("meta_file")) or [files[0].parent / "metadata.json"]
    config = _merge(files, metadata=[path for path in metadata if path.is_file()])
    allowed = _RUN_OPTIONS | _tracking_ids(options.get("tracking"))
    texts = {key: value for key, value in options.items() if key not in allowed}
    for key, value in texts.items():
        if value in ("true", "false"):  # python-fire passes on the word, which counts as true
            raise SystemExit(f"error: --{key} {value} is text here; write {value.capitalize()}")
        is_none = _normalise(key) in ConfigParser({**config}) and _value(config, key) is None
        if value == "None" and not is_none:  # MONAI leaves such an option out
            raise SystemExit(f"error: MONAI ignores --{key} None; write --{key} '$None'")
    overrides = {key: _as_fire(value) for key, value in texts.items()}
    fault = _fault(config, overrides, ", ".join(path.name for path in files))
    if fault:
        raise SystemExit(f"error: {fault}")
    parser = ConfigParser(config)
    parser.update({_normalise(key): value for key, value in overrides.items()})
    _keep_or_compare(parser, [path.name for path in files])


def _keep_or_compare(parser: ConfigParser, files: Sequence[str]) -> None:
    """Keep what a training is made with; compare it with what uses the weights."""
    from medseg_kit.bundle.record import record_training, warn_of_differences

    if "checkpoint" in parser:
        checkpoint = parser.get_parsed_content("checkpoint")
        if checkpoint is not None:
            warn_of_differences(checkpoint, parser)
    data = Path(str(parser.get_parsed_content("dataset_dir"))) if "dataset_dir" in parser else None
    # without data no training begins, and earlier weights keep what they were made with
    if data is None or any(data.glob(DATALIST_NAME)) or any(data.glob(f"*/{DATALIST_NAME}")):
        record_training(parser, files)


def _as_fire(value: Any) -> Any:
    return DefaultParseValue(value) if isinstance(value, str) else value


def command_line_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Return options and their text as python-fire reads them, the parser of MONAI's commands.

    Args:
        arguments: What follows the verb ``run``.

    Returns:
        The last value of each option without its hyphens; ``True`` for an option without a value.
    """
    options: dict[str, Any] = {}
    for position, argument in enumerate(arguments):
        if argument == "--":
            break  # what follows are flags of fire itself
        if not _is_flag(argument):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        following = arguments[position + 1] if position + 1 < len(arguments) else "--"
        text = value if equals else following
        options[name.replace("-", "_")] = True if not equals and _is_flag(following) else text
    return options


def unknown_ids(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the override ids that a configuration lacks, each with the closest existing id.

    An id is known when it exists, or when it names an argument of the ``_target_`` that its parent
    holds.

    Args:
        config: Merged configuration, metadata under ``_meta_``.
        overrides: Values by id; only the ids are looked at.
    """
    parser = ConfigParser({**config})
    wrong = [key for key in overrides if not _is_known(parser, _normalise(key))]
    if not wrong:
        return {}
    existing = [name for name, _ in iterate_items(config) if name and not name.startswith("_meta_")]
    return {key: _closest(_normalise(key), existing) for key in wrong}


def _merge(files: Sequence[Path], *, metadata: Sequence[Path]) -> dict[str, Any]:
    """Return the files' merged content with the metadata under ``_meta_``."""
    parser = ConfigParser()
    try:
        parser.read_config([str(path) for path in files])
        if metadata:
            parser.read_meta([str(path) for path in metadata])
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        names = ", ".join(str(path) for path in files)
        reason = str(error)
        if isinstance(error, KeyError):  # MONAI looks up what an overlay's key a::b changes
            changed = reason.partition("query key: ")[2].strip("'\"") or reason
            reason = f"{changed} is changed but not there; is an overlay that of another file?"
        raise UserError(f"cannot compose {names}: {reason}") from error
    content: dict[str, Any] = parser.get()
    return content


def _is_known(parser: ConfigParser, identifier: str) -> bool:
    if identifier in parser:
        return True
    parent, _, leaf = identifier.rpartition(ID_SEP_KEY)
    return bool(parent) and leaf in component_parameters(parser.get(parent))


def _closest(identifier: str, existing: Sequence[str]) -> str | None:
    """Return the nearest existing id: among siblings, then anywhere, then by its last part."""
    parent, _, leaf = identifier.rpartition(ID_SEP_KEY)
    siblings = [name for name in existing if name.rpartition(ID_SEP_KEY)[0] == parent]
    for candidates in (siblings, existing):
        match = get_close_matches(identifier, candidates, n=1, cutoff=0.75)
        if match:
            return match[0]
    leaves = {name.rpartition(ID_SEP_KEY)[2]: name for name in reversed(existing)}
    match = get_close_matches(leaf, leaves, n=1)
    return leaves[match[0]] if match else None


def _fault(config: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> str | None:
    """Return one line about overrides that cannot be meant, or None."""
    unknown = unknown_ids(config, overrides)
    if unknown:
        parts = [
            f"'{key}'" + (f" (did you mean '{close}'?)" if close else "")
            for key, close in unknown.items()
        ]
        return f"unknown override {', '.join(parts)}: no such id in {where}"
    for key, value in overrides.items():
        wanted = wanted_kind(config, _normalise(key), value)
        if wanted is not None:
            present = _value(config, key)
            return f"{key} is {present} in {where} and takes {wanted}, not '{value}'"
    return None


def _value(config: Mapping[str, Any], key: str) -> Any:
    return ConfigParser({**config}).get(_normalise(key))


def _normalise(identifier: str) -> str:
    return identifier.removeprefix("+").replace("#", ID_SEP_KEY)


def _is_flag(argument: str) -> bool:
    return argument.startswith("--") or (argument[:1] == "-" and argument[1:2].isalpha())


def _is_monai_run(arguments: Sequence[str]) -> bool:
    program = Path(arguments[0]).parts[-3:] if arguments else ()
    is_bundle_program = program == ("monai", "bundle", "__main__.py")
    return is_bundle_program and arguments[1:2] in (["run"], ["run_workflow"])


def _files(value: Any) -> list[Path]:
    if isinstance(value, str):
        return [Path(name) for name in split_file_list(value)]
    return [Path(name) for name in value] if isinstance(value, list) else []


def _tracking_ids(value: Any) -> frozenset[str]:
    """Return the ids that experiment tracking adds to the configuration."""
    known: dict[str, Any] = DEFAULT_EXP_MGMT_SETTINGS
    settings = known.get(value) if isinstance(value, str) else None
    return frozenset(settings["configs"]) if settings else frozenset()
