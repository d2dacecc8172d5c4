"""From an exception, however deeply MONAI has wrapped it, to one line that a user can act on."""

from __future__ import annotations

import logging
import re
import sys
from types import TracebackType

from medseg_kit.typing import UserError

_NOT_BUILT = "Failed to instantiate"  # how MONAI's message begins
_ABOUT_ARGUMENTS = (ValueError, TypeError)  # not their subclasses, which code raises by accident
_NOT_LOADED = re.compile(r"Error\(s\) in loading state_dict for (\w+):")  # torch's, then all names


def user_message(error: BaseException) -> str | None:
    """Return what the user can mend about an exception, or None if it is a fault of the program.

    MONAI raises its own exception from whatever happens while a configuration is built or run, so
    the chain of causes is searched for a `UserError`, for a file that cannot be used, for what a
    component said about an argument (`ValueError`, `TypeError`) when it was built, or for weights
    of another network.

    Args:
        error: The exception that arrived.
    """
    cause: BaseException | None = error
    while cause is not None:
        argument = cause.__cause__
        if str(cause).startswith(_NOT_BUILT) and type(argument) in _ABOUT_ARGUMENTS:
            component = str(cause).partition(" with ")[0].splitlines()[0]
            return f"{component}: {argument}"
        if isinstance(cause, UserError):
            return str(cause)
        network = _NOT_LOADED.match(str(cause))
        if network:
            return (
                f"the checkpoint does not hold the weights of this {network[1]}; give the model.pt"
                " of a training, with the overlays of that training"
            )
        if isinstance(cause, OSError) and cause.filename is not None:
            return f"{cause.filename}: {cause.strerror or cause}"
        cause = cause.__cause__
    return None


def report_user_errors() -> None:
    """Let this process end with one line instead of a stack trace where the user can mend it.

    For ``python -m monai.bundle run``, whose main function is not ours; the exit code stays 1. The
    engine's handlers log an exception with its trace before it arrives here: not where that one
    line follows.
    """
    from monai.apps.utils import get_logger  # the command line's --help reads this file

    sys.excepthook = _print_message
    # MONAI's handler has a logger of its own, which prints only where MONAI made it first
    for place in (*logging.getLogger().handlers, get_logger("monai.handlers.StatsHandler")):
        place.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Return False for what an engine says of an exception that ends in one line."""
    error = sys.exc_info()[1]  # both log while they handle it
    engines = record.levelno >= logging.ERROR and record.name.startswith(("ignite.", "monai."))
    return not (engines and error is not None and user_message(error))


def _print_message(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    message = user_message(error)
    if message is None:
        sys.__excepthook__(kind, error, trace)
    else:
        sys.stderr.write(f"error: {message}\n")
