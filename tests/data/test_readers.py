"""Raw layouts: pairs by name, resource forks ignored, a folder of another kind refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg_kit.data.readers import find_root, read_cases
from medseg_kit.typing import UserError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_read_cases__msd_folders_pair_by_name(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr/a.nii.gz", tmp_path / "labelsTr/a.nii.gz")
    touch(tmp_path / "imagesTr/._a.nii.gz", tmp_path / "imagesTs/z.nii.gz")
    touch(tmp_path / "labelsTr/b.nii.gz")
    first, second = read_cases(tmp_path, "msd")
    assert (first.subject, first.image.name, first.label.name) == ("a", "a.nii.gz", "a.nii.gz")
    # A label alone is a case too, so that the checks name the image that is missing.
    assert (second.subject, second.image.exists()) == ("b", False)


def test_read_cases__msd_dataset_json_decides(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr/a.nii.gz", tmp_path / "imagesTr/b.nii.gz")
    pairs = [{"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": pairs}))
    (case,) = read_cases(tmp_path, "msd")
    assert case.subject == "b"
    assert case.image == tmp_path / "imagesTr/b.nii.gz"


@pytest.mark.parametrize("text", ["{", "{}", '{"training": [1]}', '{"training": [{"image": "a"}]}'])
def test_read_cases__bad_dataset_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json has no valid list"):
        read_cases(tmp_path, "msd")


def test_read_cases__btcv_subject_is_the_number(tmp_path: Path) -> None:
    touch(tmp_path / "img/img0031.nii.gz", tmp_path / "label/label0031.nii.gz")
    touch(tmp_path / "img/notes.nii.gz")
    (case,) = read_cases(tmp_path, "btcv")
    assert (case.subject, case.label.name) == ("0031", "label0031.nii.gz")


def test_read_cases__kits_leaves_unlabelled_cases_out(tmp_path: Path) -> None:
    touch(tmp_path / "case_00001/imaging.nii.gz", tmp_path / "case_00001/segmentation.nii.gz")
    touch(tmp_path / "case_00210/imaging.nii.gz")
    (case,) = read_cases(tmp_path, "kits")
    assert (case.subject, case.image.name) == ("case_00001", "imaging.nii.gz")


def test_read_cases__wrong_folder_says_what_it_should_look_like(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no cases in the 'btcv' layout \(img/img0001"):
        read_cases(tmp_path, "btcv")
    with pytest.raises(UserError, match="layout 'dicom' is unknown"):
        read_cases(tmp_path, "dicom")


def test_find_root__own_folder_or_the_one_that_holds_it(tmp_path: Path) -> None:
    (tmp_path / "RawData" / "Training").mkdir(parents=True)
    names = ("RawData/Training", "Training")
    assert find_root(tmp_path, names) == tmp_path / "RawData/Training"
    assert find_root(tmp_path / "RawData", names) == tmp_path / "RawData/Training"
    assert find_root(tmp_path / "RawData/Training", names) == tmp_path / "RawData/Training"
    with pytest.raises(UserError, match=r"source folder .* does not exist"):
        find_root(tmp_path / "gone", names)
