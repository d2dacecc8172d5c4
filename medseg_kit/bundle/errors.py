"""From an exception, however deeply MONAI has wrapped it, to one line that a user can act on."""

from __future__ import annotations

import sys
from types import TracebackType

from medseg_kit.typing import UserError

_NOT_BUILT = "Failed to instantiate"  # how MONAI's message begins


def user_message(error: BaseException) -> str | None:
    """Return what the user can mend about an exception, or None if it is a fault of the program.

    MONAI raises its own exception from whatever happens while a configuration is built or run, so
    the chain of causes is searched for a `UserError`, for a file that cannot be used, or for what a
    component said about an argument (`ValueError`) when it was built.

    Args:
        error: The exception that arrived.
    """
    cause: BaseException | None = error
    while cause is not None:
        argument = cause.__cause__
        if str(cause).startswith(_NOT_BUILT) and type(argument) is ValueError:
            component = str(cause).partition(" with ")[0].splitlines()[0]
            return f"{component}: {argument}"
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, OSError) and cause.filename is not None:
            return f"{cause.filename}: {cause.strerror or cause}"
        cause = cause.__cause__
    return None


def report_user_errors() -> None:
    """Let this process end with one line instead of a stack trace where the user can mend it.

    For ``python -m monai.bundle run``, whose main function is not ours; the exit code stays 1.
    """
    sys.excepthook = _print_message


def _print_message(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    message = user_message(error)
    if message is None:
        sys.__excepthook__(kind, error, trace)
    else:
        sys.stderr.write(f"error: {message}\n")
