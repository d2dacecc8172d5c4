"""Label budgets: which cases of a training list count as labelled, always by subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg_kit.typing import UserError

MAX_NAMED = 5
Case = Mapping[str, Any]
Slices = Sequence[int] | None
Budget = int | str | Sequence[str] | Mapping[str, Slices] | None


def subject_of(case: Case) -> str:
    """Return a case's subject; the stem of its image where the case names none (MONAI Label)."""
    return str(case.get("subject") or Path(case["image"]).name.split(".")[0])


def case_key(case: Case) -> str:
    """Return the name of a case in file names: ``<subject>`` or ``<subject>_<frame>``.

    >>> case_key({"image": "images/a_ED.nii.gz", "subject": "a", "frame": "ED"})
    'a_ED'
    """
    frame = case.get("frame")
    return f"{subject_of(case)}_{frame}" if frame else subject_of(case)


def labelled_flags(cases: Sequence[Case], labelled: Budget = None) -> list[bool]:
    """Say which cases are labelled under a budget.

    Args:
        cases: A training list, in the order of its split.
        labelled: None: what the cases say (``labelled``, else whether they have a label). A number
            n: the first n subjects that could be labelled, with all their frames, so that smaller
            budgets are part of larger ones. A list: these subjects. "all": every case with a
            label. A mapping of case names (see `case_key`) to slices counts the cases that it
            names; `labelled_slices` says which of their slices. A budget concerns the cases of a
            datalist; those without a ``subject`` (MONAI Label's) keep what they say.

    Returns:
        One flag a case; a case without a label file is never labelled.

    Raises:
        UserError: When the budget is larger than the list, or names a subject that it has not.
    """
    own = [_says_labelled(case) for case in cases]
    if labelled is None:
        return own
    named = list(
        dict.fromkeys(c["subject"] for c, o in zip(cases, own, strict=True) if _fits(c, o))
    )
    if not named and not any("subject" in case for case in cases):
        return own
    if isinstance(labelled, Mapping):
        return _named_cases(cases, own, labelled)
    chosen = _chosen_subjects(named, labelled)
    return [
        flag and case["subject"] in chosen if "subject" in case else flag
        for case, flag in zip(cases, own, strict=True)
    ]


def labelled_slices(case: Case, depth: int, labelled: Budget) -> list[bool]:
    """Say which slices of a labelled case a budget labels.

    The papers' MCSC code labels 23 of the 32 slices of ACDC's first patient: ``{patient099_ED:
    null, patient099_ES: [0, 1, 2, 4, 8, 9, 10]}``.

    Args:
        case: A case that `labelled_flags` calls labelled.
        depth: Slices of its volume.
        labelled: The budget; only a mapping chooses among slices, null stands for all of them.

    Returns:
        One flag a slice.

    Raises:
        UserError: When the budget names a slice that the volume has not.
    """
    chosen = labelled.get(case_key(case)) if isinstance(labelled, Mapping) else None
    if chosen is None:
        return [True] * depth
    if wrong := [index for index in chosen if not 0 <= index < depth]:
        raise UserError(
            f"labelled names the slices {wrong} of {case_key(case)}, which has {depth}, counted"
            " from 0"
        )
    return [index in set(chosen) for index in range(depth)]


def _says_labelled(case: Case) -> bool:
    return bool(case.get("labelled", True)) and bool(case.get("label"))


def _fits(case: Case, labelled: bool) -> bool:
    return labelled and "subject" in case


def _named_cases(
    cases: Sequence[Case], own: Sequence[bool], labelled: Mapping[str, Slices]
) -> list[bool]:
    flags = [flag and case_key(case) in labelled for case, flag in zip(cases, own, strict=True)]
    found = {case_key(case) for case, flag in zip(cases, flags, strict=True) if flag}
    if unknown := [name for name in labelled if name not in found]:
        raise UserError(
            f"labelled names the case(s) {', '.join(unknown[:MAX_NAMED])}, which the training list"
            " does not have with a label; cases are called SUBJECT or SUBJECT_FRAME"
        )
    return flags


def _chosen_subjects(named: Sequence[str], labelled: int | str | Sequence[str]) -> set[str]:
    if labelled == "all":
        return set(named)
    if isinstance(labelled, int) and not isinstance(labelled, bool):
        if not 0 <= labelled <= len(named):
            raise UserError(
                f"labelled is {labelled}, but the training list has {len(named)} subjects with"
                " labels; choose a number from 0 to that"
            )
        return set(named[:labelled])
    if isinstance(labelled, (str, bool, float)):
        raise UserError(
            f"labelled is {labelled!r}; give a number of subjects, a list of them, all or null"
        )
    if unknown := [subject for subject in labelled if subject not in named]:
        raise UserError(
            f"labelled names {', '.join(map(str, unknown[:MAX_NAMED]))}, which the training list"
            " does not have with a label: misspelt, or a validation or test subject"
        )
    return set(labelled)
