"""The ``medseg`` command: finds a command by name, checks its arguments, and only then imports it.

Nothing here imports torch or MONAI, so ``medseg --help`` answers at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from medseg_kit import __version__
from medseg_kit.bundle.errors import user_message
from medseg_kit.cli.arguments import UsageError, call
from medseg_kit.cli.help import command_help, overview

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo:demo", "train, compare and apply a federation on synthetic patients"),
    "doctor": ("doctor:doctor", "show what is installed and which bundles would run"),
    "predict": ("predict:predict", "segment a folder, a datalist or a glob with a bundle"),
    "support": ("support:support", "turn an annotated scan into a one-shot bundle's prototypes"),
    "evaluate": ("evaluate:evaluate", "score segmentations against references"),
    "data prepare": ("data:prepare", "turn a raw public data set into a checked one"),
    "data check": ("data:check", "repeat the checks of a prepared data set"),
    "data phantoms": ("data:phantoms", "write synthetic patients"),
    "register": ("register:register", "register a data set's volumes and warp labels between them"),
    "register segment": ("register:segment", "segment by registration alone, the baseline"),
    "superpixels": ("superpixels:superpixels", "make the pseudo-labels of one-shot training"),
    "federate simulate": ("federate:simulate", "run a federation on this machine"),
    "federate export": ("federate:export", "write an NVIDIA FLARE job for real sites"),
    "study": ("study:study", "run configurations x seeds, resumable, and compare them"),
    "report": ("report:report", "make tables, figures and a page from a study's records"),
    "bundle verify": ("bundle:verify", "check a bundle offline, as the Model Zoo does"),
    "bundle pack": ("bundle:pack", "make trained weights those of a bundle"),
    "bundle new": ("bundle:new", "write the skeleton of a new bundle"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: Words after ``medseg``; the process's own when not given.

    Raises:
        SystemExit: 0 on success, the command's own code, 1 for an error the user can fix, 2 for
            wrong usage, 130 when interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _dispatch(words)
    except UsageError as error:
        print(f"error: {error}\nSee: medseg {_command_words(words)}--help", file=sys.stderr)
        code = EXIT_USAGE
    except BrokenPipeError:  # whoever read the output has gone, as in `medseg doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILURE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        code = EXIT_FAILURE
    raise SystemExit(code)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(COMMANDS))
        return 0
    if words[0] in ("--version", "-V"):
        print(f"medseg {__version__}")
        return 0
    name, rest = find_command(words)
    if name not in COMMANDS:
        print(overview(COMMANDS, group=name))
        return 0
    function = load_command(name)
    if any(word in ("-h", "--help") for word in rest):
        print(command_help(name, function))
        return 0
    # MONAI warns at every reading that an optional GPU decoder for DICOM is absent
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
    result = call(function, rest)
    return 0 if result is None else int(result)


def find_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command's name and the words that follow it.

    Args:
        words: Words after ``medseg``. A group alone (``data``, ``data --help``) is returned as it
            is.

    Raises:
        UsageError: For an unknown command or sub-command; names the closest one.
    """
    first, rest = words[0], list(words[1:])
    if len(words) > 1 and f"{first} {words[1]}" in COMMANDS:
        return f"{first} {words[1]}", rest[1:]
    if first in COMMANDS:
        return first, rest
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    if first not in groups:
        known = sorted({name.split()[0] for name in COMMANDS})
        raise UsageError(f"unknown command '{first}'{_did_you_mean(first, known)}")
    if not rest or rest[0] in ("-h", "--help"):
        return first, rest
    known = [key.split()[1] for key in COMMANDS if key.startswith(f"{first} ")]
    raise UsageError(f"unknown command '{first} {rest[0]}'{_did_you_mean(rest[0], known)}")


def load_command(name: str) -> Callable[..., Any]:
    """Return the function behind a command; only its own module is imported.

    Args:
        name: Key of `COMMANDS`.
    """
    module, _, function = COMMANDS[name][0].partition(":")
    command: Callable[..., Any] = getattr(
        importlib.import_module(f"medseg_kit.cli.{module}"), function
    )
    return command


def _command_words(words: Sequence[str]) -> str:
    """Return the words that name an existing command or group, for the hint behind an error."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS or any(key.startswith(f"{name} ") for key in COMMANDS if name):
            return f"{name} "
    return ""


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
