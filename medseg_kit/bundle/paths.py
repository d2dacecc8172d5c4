"""Where bundles live: from a name, a path or the running process to the bundle's folder.

MONAI never derives ``bundle_root`` from the place of the configuration file, so every bundle of
this project starts with::

    bundle_root: {_target_: medseg_kit.bundle.paths.find_bundle_root, name: hippocampus_mr_segviz}

and works from any working directory. ``--bundle_root`` and whoever sets the id (MONAI Label,
``MonaiAlgo``) still win.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from medseg_kit.typing import PathLike, UserError

BUNDLES_VARIABLE = "MEDSEG_BUNDLES"


def find_bundle_root(name: str, argv: Sequence[str] | None = None) -> str:
    """Return the absolute folder of the bundle that this process runs.

    The first ``--config_file`` on the process's command line decides when it lies in a ``configs``
    folder; otherwise the bundle is looked up by name, see `bundle_folders`.

    Args:
        name: Folder name of the bundle.
        argv: Command line to read instead of the process's own.

    Raises:
        UserError: If no such bundle is found; the message says where it was looked for.
    """
    for config_file in command_line_config_files(argv):
        folder = Path(config_file).absolute().parent
        if folder.name == "configs" and Path(config_file).is_file():
            return str(folder.parent)
    return str(resolve_bundle(name))


def command_line_config_files(argv: Sequence[str] | None = None) -> list[str]:
    """Return the files named by ``--config_file`` in the forms that MONAI's command line takes.

    Args:
        argv: Command line to read instead of the process's own; the program name comes first.
    """
    arguments = list(sys.argv if argv is None else argv)[1:]
    for position, argument in enumerate(arguments):
        if not argument.startswith("-"):
            continue
        option, equals, value = argument.lstrip("-").partition("=")
        if option.replace("-", "_") != "config_file":
            continue
        if not equals:
            value = arguments[position + 1] if position + 1 < len(arguments) else ""
        return split_file_list(value)
    return []


def split_file_list(value: str) -> list[str]:
    """Return the paths in ``a.yaml``, ``a.yaml,b.yaml`` or ``['a.yaml','b.yaml']``.

    >>> split_file_list("['train.yaml', 'evaluate.yaml']")
    ['train.yaml', 'evaluate.yaml']
    """
    text = value.strip()
    if text[:1] in ("[", "("):
        try:
            return [str(item) for item in ast.literal_eval(text)]
        except (ValueError, SyntaxError):
            text = text.strip("[]()")  # a shell ate the quotes: [a.yaml,b.yaml]
    return [item.strip().strip("'\"") for item in text.split(",") if item.strip()]


def bundle_folders() -> list[Path]:
    """Return the existing folders that hold bundles, in order of search.

    These are the folders of the environment variable ``MEDSEG_BUNDLES`` (separated as in
    ``PATH``), ``bundles/`` below the working directory, ``bundles/`` of the source checkout, and
    ``bundles/`` beside the Python environment (the offline installation).
    """
    named = [Path(part) for part in os.environ.get(BUNDLES_VARIABLE, "").split(os.pathsep) if part]
    checkout = Path(__file__).resolve().parents[2]
    candidates = [
        *named,
        Path.cwd() / "bundles",
        checkout / "bundles",
        Path(sys.prefix).parent / "bundles",
    ]
    folders: list[Path] = []
    for candidate in candidates:
        absolute = candidate.absolute()
        if absolute.is_dir() and absolute not in folders:
            folders.append(absolute)
    return folders


def list_bundles() -> dict[str, Path]:
    """Return the bundles that a name reaches, sorted; the first folder of the search wins."""
    found: dict[str, Path] = {}
    for folder in bundle_folders():
        for path in folder.iterdir():
            if is_bundle(path):
                found.setdefault(path.name, path)
    return dict(sorted(found.items()))


def is_bundle(path: PathLike) -> bool:
    """Return whether a folder has the metadata file that makes it a bundle."""
    return (Path(path) / "configs" / "metadata.json").is_file()


def resolve_bundle(name_or_path: PathLike) -> Path:
    """Return the absolute folder of a bundle given by path or by name.

    Args:
        name_or_path: A folder with ``configs/metadata.json``, or the name of a bundle in one of
            `bundle_folders`.

    Raises:
        UserError: If there is no such bundle; names the closest one, or where to look.
    """
    path = Path(name_or_path)
    if is_bundle(path):
        return path.absolute()
    text = os.fspath(name_or_path)
    known = list_bundles()
    if text in known:
        return known[text]
    if path.is_dir():
        raise UserError(f"{text}: not a bundle, it has no configs/metadata.json")
    close = get_close_matches(text, known, n=1)
    if close:
        raise UserError(f"bundle '{text}' not found; did you mean '{close[0]}'?")
    searched = ", ".join(str(folder) for folder in bundle_folders()) or "no folder exists"
    raise UserError(
        f"bundle '{text}' not found (known: {', '.join(known) or 'none'}; searched: {searched}); "
        f"give its path, or set {BUNDLES_VARIABLE} to the folder that holds it"
    )
