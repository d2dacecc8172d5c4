"""Label budgets are nested, by subject, and never take a validation subject."""

from __future__ import annotations

import pytest

from medseg_kit.data.budgets import (
    case_key,
    labelled_flags,
    labelled_slices,
    subject_of,
)
from medseg_kit.typing import UserError

CASES = [
    {"image": f"{subject}_{frame}.nii.gz", "label": "l", "subject": subject, "frame": frame}
    for subject in ("099", "038", "050", "100")
    for frame in ("ED", "ES")
]


def labelled_subjects(labelled) -> list[str]:
    flags = labelled_flags(CASES, labelled)
    return list(dict.fromkeys(c["subject"] for c, f in zip(CASES, flags, strict=True) if f))


def test_labelled_flags__nested_prefixes_by_subject() -> None:
    budgets = [labelled_subjects(number) for number in range(5)]
    assert budgets == [[], ["099"], ["099", "038"], ["099", "038", "050"], labelled_subjects("all")]
    assert sum(labelled_flags(CASES, 1)) == 2  # both frames


def test_labelled_flags__what_the_cases_say() -> None:
    cases = [{**CASES[0], "labelled": False}, CASES[2], {"image": "x.nii", "subject": "x"}]
    assert labelled_flags(cases) == [False, True, False]
    assert labelled_flags(cases, 1) == [False, True, False]


def test_labelled_flags__no_whole_number() -> None:
    with pytest.raises(UserError, match=r"labelled is 3\.5; give a number of subjects"):
        labelled_flags(CASES, 3.5)


def test_labelled_flags__subjects_by_name() -> None:
    assert labelled_subjects(["050", "038"]) == ["038", "050"]
    with pytest.raises(UserError, match="labelled names 007, which the training list does not"):
        labelled_flags(CASES, ["099", "007"])


def test_labelled_flags__monai_label_lists_are_all_labelled() -> None:
    cases = [{"image": "a.nii.gz", "label": "a"}, {"image": "b.nii.gz", "label": "b"}]
    assert labelled_flags(cases, 1) == [True, True]


@pytest.mark.parametrize("labelled", [5, -1, True, "three"])
def test_labelled_flags__impossible_budgets(labelled) -> None:
    with pytest.raises(UserError, match="labelled is"):
        labelled_flags(CASES, labelled)


def test_labelled_slices__some_slices_of_a_case() -> None:
    budget = {"099_ED": None, "099_ES": [0, 2]}
    assert labelled_flags(CASES, budget) == [True, True] + [False] * 6
    assert labelled_slices(CASES[0], 3, budget) == [True, True, True]
    assert labelled_slices(CASES[1], 3, budget) == [True, False, True]
    assert labelled_slices(CASES[1], 3, 1) == [True, True, True]
    with pytest.raises(UserError, match=r"slices \[2\] of 099_ES, which has 2"):
        labelled_slices(CASES[1], 2, budget)
    with pytest.raises(UserError, match=r"names the case.* 007_ED"):
        labelled_flags(CASES, {"007_ED": None})


def test_case_key__without_frame_or_subject() -> None:
    assert case_key({"image": "f/a.b.nii.gz"}) == "a"
    assert subject_of({"image": "f/a.nii.gz", "subject": "z"}) == "z"
