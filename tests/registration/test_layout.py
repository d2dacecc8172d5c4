"""Registered labels are found by the number of subjects whose labels a run uses."""

import json

import pytest
import torch

from medseg_kit.registration.layout import registered_labels, registration_digest
from medseg_kit.typing import UserError

DATA = [
    {"image": "a_ED.nii.gz", "label": "a_ED.nii.gz", "subject": "a", "frame": "ED"},
    {"image": "a_ES.nii.gz", "label": "a_ES.nii.gz", "subject": "a", "frame": "ES"},
    {"image": "b_ED.nii.gz", "label": "b_ED.nii.gz", "subject": "b", "frame": "ED"},
    {"image": "c_ED.nii.gz", "subject": "c", "frame": "ED"},
]


@pytest.mark.parametrize(("labelled", "name"), [(None, "labelled_2"), (1, "labelled_1")])
def test_registered_labels__number_of_subjects_not_of_frames(labelled, name) -> None:
    assert registered_labels("reg", DATA, labelled).name == name


def test_registered_labels__none_without_a_registration() -> None:
    assert registered_labels(None, DATA, ["a"]) is None


@pytest.mark.parametrize("labelled", [None, 2, "all"])
def test_registered_labels__none_where_every_case_is_labelled(labelled) -> None:
    assert registered_labels("reg", DATA[:3], labelled) is None


@pytest.mark.parametrize("labelled", [["b"], "all", {"a_ED": None}])
def test_registered_labels__of_other_subjects_are_never_taken(labelled) -> None:
    with pytest.raises(UserError, match="by the number of labelled subjects"):
        registered_labels("reg", DATA, labelled)


def test_registration_digest__of_the_budgets_own_labels_and_all_maps(tmp_path) -> None:
    def write(name, *inputs):
        rows = [{"case": f"c{number}", "inputs": item} for number, item in enumerate(inputs)]
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "selection.json").write_text(json.dumps(rows))

    write("labelled_3", "a", "b")
    first = registration_digest(tmp_path, 3)
    write("labelled_7", "c")  # another budget, and another choice, change nothing
    write("labelled_3_random", "d")
    assert registration_digest(tmp_path, 3) == first
    write("labelled_3", "a", "e")
    second = registration_digest(tmp_path, 3)
    assert second != first
    torch.save({"keys": ["c0", "c1"], "pairs": torch.tensor([[0, 1]])}, tmp_path / "maps.pt")
    assert registration_digest(tmp_path, 3) != second
