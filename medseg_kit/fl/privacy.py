"""What may leave a site: error texts without paths or patients, metrics over enough cases only."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

DEFAULT_MIN_CASES = 5
MAX_ERROR_LENGTH = 300

_REPLACEMENTS = (
    (re.compile(r"(['\"])[^'\"]*[\\/][^'\"]*\1"), "<path>"),
    (re.compile(r"\S*[\\/]\S*"), "<path>"),
    (re.compile(r"\S+\.(nii|gz|dcm|nrrd|mha|mhd|json|ya?ml|npy|npz|h5|pt|txt|csv)\b\S*"), "<file>"),
    (re.compile(r"\S*\^\S*"), "<case>"),  # a DICOM person name
    (re.compile(r"\d{6,}"), "<number>"),  # record numbers and dates
)


def scrub(text: str, identifiers: Iterable[str] = (), places: Iterable[str] = ()) -> str:
    """Return one line of a text without paths, file names, long numbers and named patients.

    Args:
        text: Any text, e.g. of an exception.
        identifiers: Subjects and file stems of the site.
        places: Folders of the site, whose names may hold spaces.

    >>> scrub("cannot read '/data/x y/p17.nii.gz' of p17", ["p17"])
    'cannot read <path> of <case>'
    """
    line = " ".join(text.split())
    for place in sorted(set(places), key=len, reverse=True):
        if "/" in place.strip("/.") or "\\" in place:  # else a word that may stand anywhere
            line = re.sub(rf"(?<![\w/\\]){re.escape(place)}[^\s'\"]*", "<path>", line)
    for pattern, replacement in _REPLACEMENTS:
        line = pattern.sub(replacement, line)
    for name in sorted(set(identifiers), key=len, reverse=True):
        if name:
            # an underscore does not end a name: patient001_frame01 names patient001
            line = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "<case>", line)
    return line if len(line) <= MAX_ERROR_LENGTH else line[: MAX_ERROR_LENGTH - 3] + "..."


def describe_error(
    error: BaseException, identifiers: Iterable[str] = (), places: Iterable[str] = ()
) -> str:
    """Return the type and the scrubbed message of an exception's innermost cause."""
    while error.__cause__ is not None:  # MONAI wraps what happens inside a configuration
        error = error.__cause__
    return f"{type(error).__name__}: {scrub(str(error), identifiers, places)}"


def shareable_metrics(
    metrics: Mapping[str, Any],
    *,
    num_cases: int,
    min_cases: int,
    counted: Mapping[str, int] | None = None,
) -> tuple[dict[str, float], str | None]:
    """Return the metrics that may leave a site, and why not if none may.

    Only finite scalars leave; lists and tensors of several values are per case and stay.

    Args:
        metrics: An evaluator's metrics.
        num_cases: Cases that they were taken over.
        min_cases: Fewest cases whose mean may leave.
        counted: Cases with a value behind each metric, where they are known: a case without the
            organ has none.
    """
    if num_cases < min_cases:
        return {}, f"{num_cases} validation cases, fewer than min_cases={min_cases}"
    enough = {
        name: value
        for name, value in metrics.items()
        if (counted or {}).get(name, num_cases) >= min_cases
    }
    if metrics and not enough:
        return {}, f"fewer than min_cases={min_cases} validation cases show an organ"
    scalars = {name: _scalar(value) for name, value in enough.items()}
    return {
        name: value for name, value in scalars.items() if value is not None and math.isfinite(value)
    }, None


def _scalar(value: Any) -> float | None:
    if isinstance(value, bool | str) or value is None:
        return None
    if hasattr(value, "numel"):
        return float(value) if value.numel() == 1 else None
    try:
        return float(value)
    except TypeError:
        return None
