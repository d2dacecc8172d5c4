from __future__ import annotations

import json

import pytest

from medseg_kit.inference.cases import find_cases
from medseg_kit.inference.device import select_device, share
from medseg_kit.typing import UserError


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def _names(*arguments, **options):
    return [case.name for case in find_cases(*arguments, **options)]


def test_find_cases__equal_file_names_in_folders_stay_apart(tmp_path):
    _touch(tmp_path, "p1/image.nii.gz", "p2/image.nii.gz", "image.nii.gz")
    assert _names(tmp_path) == ["image", "p1/image", "p2/image"]


def test_find_cases__names_do_not_depend_on_other_folders(tmp_path):
    _touch(tmp_path, "p1/image.nii.gz")
    before = _names(tmp_path)
    _touch(tmp_path, "p0/image.nii.gz")
    assert before[0] in _names(tmp_path)


def test_find_cases__only_the_type_differs(tmp_path):
    _touch(tmp_path, "a.nii.gz", "a.nrrd", "b.mha", "c.nii", "c.nii.gz")
    assert _names(tmp_path) == ["a", "a.nrrd", "b", "c", "c.nii.gz"]


def test_find_cases__leaves_out_labels_hidden_files_and_results(tmp_path):
    _touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTr/._a.nii.gz", "notes.txt")
    _touch(tmp_path, "out/a.nii.gz")
    assert _names(tmp_path, exclude=tmp_path / "out") == ["imagesTr/a"]


def test_find_cases__links_in_a_circle(tmp_path):
    _touch(tmp_path, "p1/a.nii.gz")
    (tmp_path / "p1" / "up").symlink_to(tmp_path)
    assert _names(tmp_path) == ["p1/a"]


def test_find_cases__datalist(tmp_path):
    _touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz")
    content = {
        "spacing": "lost",
        "training": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}],
        "test": ["images/b.nii.gz", "images/a.nii.gz"],
    }
    (tmp_path / "datalist.json").write_text(json.dumps(content))

    assert _names(tmp_path) == ["a", "b"]
    assert _names(tmp_path / "datalist.json", section="training") == ["a"]
    assert all(case.spacing_lost for case in find_cases(tmp_path))
    with pytest.raises(UserError, match="validation"):
        find_cases(tmp_path, section="validation")
    with pytest.raises(UserError, match="has no sections, so there is no 'test'"):
        find_cases(tmp_path / "images", section="test")


def test_find_cases__results_reached_by_another_path(tmp_path):
    _touch(tmp_path / "real", "a.nii.gz", "out/a.nii.gz")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for source in (tmp_path / "link", f"{tmp_path}/link/**/*.nii.gz"):
        assert _names(source, exclude=tmp_path / "real" / "out") == ["a"]


def test_find_cases__a_link_to_nowhere_among_the_images(tmp_path):
    _touch(tmp_path, "a.nii.gz")
    (tmp_path / "README").symlink_to(tmp_path / "gone")
    assert _names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("content", "message"), [([], "it holds a list"), ({"test": [{"image": ["a"]}]}, "one path")]
)
def test_find_cases__no_datalist(tmp_path, content, message):
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"is not a datalist: .*{message}"):
        find_cases(tmp_path)


def test_find_cases__support_scans_are_no_queries(tmp_path):
    entries = [{"image": "a.nii.gz", "support": True}, {"image": "b.nii.gz"}]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": entries, "test": []}))
    for section, names in ((None, ["b"]), ("training", ["b"]), ("support", ["a"])):
        assert [case.name for case in find_cases(tmp_path, section=section)] == names


def test_find_cases__pattern(tmp_path):
    _touch(tmp_path, "p1/ct.nii.gz", "p1/mr.nii.gz", "p2/ct.nii.gz")
    assert _names(f"{tmp_path}/*/ct.nii.gz") == ["p1/ct", "p2/ct"]
    assert _names(tmp_path / "p1" / "ct.nii.gz") == ["ct"]


def test_find_cases__output_folder_is_the_input_folder(tmp_path):
    _touch(tmp_path, "a.nrrd")
    with pytest.raises(UserError, match="give another output folder"):
        find_cases(tmp_path, exclude=tmp_path)


@pytest.mark.parametrize("name", ["missing", "empty", "empty/*.nii.gz"])
def test_find_cases__nothing_there(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"does not exist|holds no images"):
        find_cases(tmp_path / name)


def test_share__parts_times_processes(monkeypatch):
    assert share(4, 1) == (4, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert share(4, 1) == (8, 3)
    with pytest.raises(UserError, match="part 4 of 4"):
        share(4, 4)


def test_select_device__unknown_and_absent():
    assert select_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        select_device("gpu")
    with pytest.raises(UserError, match="GPUs are present"):
        select_device("cuda:99")
