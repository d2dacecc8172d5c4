"""The datalist: loading, partial labels, and messages for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medseg_kit.data.datalist import (
    annotated_organs,
    load_datalist,
    read_datalist,
    site_folders,
    write_datalist,
)
from medseg_kit.data.pooling import load_pooled_datalist
from medseg_kit.typing import UserError

ORGANS = ["liver", "spleen"]


def content(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "set",
        "modality": "CT",
        "intensity": "HU",
        "spacing": "valid",
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "annotated": ["spleen"],
        "site": "site-spleen",
        "training": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz", "subject": "a"}],
        "validation": [],
        "test": [],
        "sha256": {},
        **changes,
    }


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.nii.gz").touch()
    write_datalist(folder, content())
    return folder


def test_load_datalist__gives_absolute_paths_and_annotated_flags(dataset: Path) -> None:
    (case,) = load_datalist(dataset, "training", organs=ORGANS)
    assert case == {
        "image": str(dataset / "images/a.nii.gz"),
        "label": str(dataset / "labels/a.nii.gz"),
        "subject": "a",
        "site": "site-spleen",
        "annotated": [True, False, True],
    }


def test_load_datalist__relative_folder_gives_absolute_paths(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dataset.parent)
    (case,) = load_datalist("set", "training", organs=ORGANS)
    assert Path(case["image"]).is_absolute()


def test_load_datalist__case_overrides_what_is_annotated(dataset: Path) -> None:
    case = {**content()["training"][0], "annotated": ["liver"], "site": None}
    write_datalist(dataset, content(training=[case], site=None))
    (loaded,) = load_datalist(dataset, "training", organs=ORGANS)
    assert loaded["annotated"] == [True, True, False]
    assert "site" not in loaded, "None does not pass MONAI's collate"
    assert annotated_organs(dataset, ORGANS) == ORGANS


def test_load_datalist__unlabelled_case_annotates_no_organ(dataset: Path) -> None:
    write_datalist(dataset, content(training=[{"image": "images/a.nii.gz", "subject": "a"}]))
    (case,) = load_datalist(dataset, "training", organs=ORGANS)
    assert "label" not in case
    assert case["annotated"] == [True, False, False]


@pytest.mark.parametrize(
    ("section", "organs", "message"),
    [
        ("train", ORGANS, r"section 'train' is unknown; choose one of training"),
        ("validation", ORGANS, r"no validation cases; filled are training \(1\)"),
        ("training", ["spleen", "liver"], r"\['liver', 'spleen'\].*\['spleen', 'liver'\]"),
        ("training", ["liver"], "prepare the data with a view of these organs"),
    ],
)
def test_load_datalist__wrong_request_names_values(
    dataset: Path, section: str, organs: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_datalist(dataset, section, organs=organs)


def test_load_datalist__missing_file_is_named(dataset: Path) -> None:
    (dataset / "labels/a.nii.gz").unlink()
    with pytest.raises(UserError, match=r"missing files: .*labels/a\.nii\.gz"):
        load_datalist(dataset, "training", organs=ORGANS)


def test_read_datalist__missing_folder_and_list_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; prepare one"):
        read_datalist(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds no datalist\.json"):
        read_datalist(tmp_path)


def test_read_datalist__broken_json_is_named(dataset: Path) -> None:
    (dataset / "datalist.json").write_text("{")
    with pytest.raises(UserError, match="no valid JSON"):
        read_datalist(dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": "PET"}, "modality: 'PET' is not one of"),
        ({"extra": 1}, r"unknown key\(s\) extra; known are"),
        ({"training": [{"image": "/abs.nii.gz", "subject": "a"}]}, r"training\[0\].image"),
        ({"training": [{"image": "../up.nii.gz", "subject": "a"}]}, r"training\[0\].image"),
        ({"labels": {"0": "background", "1": "a", "3": "b"}}, "without a gap"),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "share a name"),
        ({"annotated": ["heart"]}, r"\['heart'\] have no value"),
        ({"test": [{"image": "images/b.nii.gz", "subject": "a"}]}, "a subject belongs to one"),
        ({"validation": [{"image": "b.nii.gz", "subject": "a"}]}, "a stands in training and in va"),
    ],
)
def test_write_datalist__refuses_invalid_content(
    dataset: Path, changes: dict[str, Any], message: str
) -> None:
    before = (dataset / "datalist.json").read_bytes()
    with pytest.raises(UserError, match=message):
        write_datalist(dataset, content(**changes))
    assert (dataset / "datalist.json").read_bytes() == before


def test_write_datalist__failed_write_leaves_the_old_file(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("medseg_kit.files.os.fsync", full_disk)
    before = (dataset / "datalist.json").read_bytes()
    with pytest.raises(OSError, match="no space left"):
        write_datalist(dataset, content(name="new"))
    assert (dataset / "datalist.json").read_bytes() == before
    assert sorted(p.name for p in dataset.iterdir()) == ["datalist.json", "images", "labels"]


def test_annotated_organs__site_and_folder_without_datalist(dataset: Path, tmp_path: Path) -> None:
    assert annotated_organs(dataset, ORGANS) == ["spleen"]
    assert annotated_organs(tmp_path, ORGANS) == ORGANS


def test_load_pooled_datalist__keeps_each_sites_flags(dataset: Path) -> None:
    other = dataset.parent / "second"
    dataset.rename(other)
    for folder, organ in ((dataset, "liver"), (other, "spleen")):
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "a.nii.gz").touch()
        write_datalist(folder, content(annotated=[organ], site=folder.name))
    assert list(site_folders(dataset.parent)) == ["second", "set"]
    pooled = load_pooled_datalist(dataset.parent, "training", organs=ORGANS)
    assert [case["annotated"] for case in pooled] == [[True, False, True], [True, True, False]]


def test_site_folders__empty_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--sites SETTING"):
        site_folders(tmp_path)


def test_site_folders__one_folder_too_high_names_the_right_one(dataset: Path) -> None:
    sites = dataset.parent / "prepared" / "sites"
    sites.mkdir(parents=True)
    dataset.rename(sites / "north")
    with pytest.raises(UserError, match=f"some in {sites}: give that folder"):
        site_folders(sites.parent)


def test_datalist__is_plain_json(dataset: Path) -> None:
    assert json.loads((dataset / "datalist.json").read_text()) == content()


def test_load_datalist__serves_a_network_of_the_first_organs(dataset: Path) -> None:
    write_datalist(dataset, content(annotated=["liver"]))
    (case,) = load_datalist(dataset, "training", organs=["liver"])
    assert case["annotated"] == [True, True]
