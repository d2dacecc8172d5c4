"""Preparation: right output from good data; every problem named and nothing left from bad data."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # its documented name

from medseg_kit.data.datalist import load_datalist, read_datalist
from medseg_kit.data.findings import DataProblemsError
from medseg_kit.data.plan import make_plan
from medseg_kit.data.prepare import prepare_dataset
from medseg_kit.data.volumes import file_sha256
from medseg_kit.typing import UserError
from tests.data.conftest import AFFINE, SUBJECTS, Prepare, write_nifti

ORGANS = ["liver", "parts"]


def array(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_prepare__whole_set_and_sites(prepare: Prepare, raw_set: Path, tmp_path: Path) -> None:
    report = prepare()
    out = tmp_path / "out"
    assert report["cases"] == {"training": 2, "validation": 2, "test": 2}
    assert report["orientations"] == {"RAS": 6}
    whole = load_datalist(out, "test", organs=ORGANS)
    assert [case["subject"] for case in whole] == SUBJECTS[4:]
    assert whole[0]["annotated"] == [True, True, True]
    raw = array(raw_set / "labelsTr" / "case_4.nii.gz")
    assert np.array_equal(array(out / "labels/case_4.nii.gz"), np.array([0, 2, 1, 2])[raw])


def test_prepare__site_holds_its_organ_only(
    prepare: Prepare, raw_set: Path, tmp_path: Path
) -> None:
    prepare()
    site = tmp_path / "out" / "sites" / "site-parts"
    (case,) = load_datalist(site, "training", organs=ORGANS)
    assert case["annotated"] == [True, False, True]
    assert case["site"] == "site-parts"
    raw = array(raw_set / "labelsTr" / "case_2.nii.gz")
    assert np.array_equal(array(Path(case["label"])), np.array([0, 2, 0, 2])[raw])
    shutil.rmtree(site.parents[1] / "images")
    assert array(Path(case["image"])).shape == raw.shape, "a site needs nothing outside its folder"


def test_prepare__intensity_becomes_hounsfield_units(
    prepare: Prepare, raw_set: Path, tmp_path: Path
) -> None:
    prepare()
    stored = array(raw_set / "imagesTr" / "case_0.nii.gz").astype(int)
    prepared = array(tmp_path / "out" / "images" / "case_0.nii.gz")
    assert prepared.dtype == np.int16
    assert np.array_equal(prepared, stored * 2 - 100)


def test_prepare__every_reader_sees_the_same_grid(prepare: Prepare, tmp_path: Path) -> None:
    prepare()
    path = tmp_path / "out" / "images" / "case_0.nii.gz"
    header = nib.load(path).header
    assert np.array_equal(header.get_sform(), AFFINE)
    assert np.array_equal(header.get_qform(), AFFINE)
    assert sitk.ReadImage(str(path)).GetSpacing() == (2.0, 2.0, 3.0)


def test_prepare__sums_report_and_repetition(prepare: Prepare, tmp_path: Path) -> None:
    prepare()
    out = tmp_path / "out"
    first = tree(out)
    for folder in (out, out / "sites" / "site-liver"):
        sums = read_datalist(folder)["sha256"]
        assert sums == {name: file_sha256(folder / name) for name in sums}
    report = json.loads((out / "report.json").read_text())
    assert report["records"][0]["voxels"] == {"liver": 18, "parts": 8}
    assert report["records"][0]["ml"] == {"liver": 0.216, "parts": 0.096}
    prepare(overwrite=True)
    assert tree(out) == first
    assert str(tmp_path) not in (out / "report.json").read_text()


def test_prepare__existing_folder_is_kept(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists; choose another folder or replace it with --over"):
        prepare()
    with pytest.raises(UserError, match="is no prepared data set, so it is not replaced"):
        prepare(overwrite=True)


def test_prepare__view_with_an_organ_that_the_set_lacks(
    raw_set: Path, manifest_file: Callable[..., Path], tmp_path: Path
) -> None:
    prepare_dataset(make_plan(manifest_file(), source=raw_set, view="three"), tmp_path / "out")
    (case, *_) = load_datalist(tmp_path / "out", "training", organs=["spleen", "liver"])
    assert case["annotated"] == [True, False, True]
    assert set(np.unique(array(Path(case["label"])))) == {0, 2}


def test_prepare__lost_spacing_leaves_millimetres_empty(prepare: Prepare) -> None:
    record = prepare(changes={"spacing": "lost"})["records"][0]
    assert record["ml"] is None
    assert record["spacing_mm"] is None


def image_of(root: Path) -> Path:
    return root / "imagesTr" / "case_1.nii.gz"


def label_of(root: Path) -> Path:
    return root / "labelsTr" / "case_1.nii.gz"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def change(
    path: Path, function: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = AFFINE
) -> None:
    write_nifti(path, function(array(path)), affine)


def with_value(value: float, dtype: type = np.float32) -> Callable[[np.ndarray], np.ndarray]:
    def replace(values: np.ndarray) -> np.ndarray:
        changed = values.astype(dtype)
        changed[0, 0, 0] = value
        return changed

    return replace


SHIFTED = AFFINE + np.array([[0, 0, 0, 5], [0] * 4, [0] * 4, [0] * 4], float)
SHEARED = AFFINE + np.array([[0, 0.5, 0, 0], [0] * 4, [0] * 4, [0] * 4], float)


def break_orientation(root: Path) -> None:
    image = nib.load(image_of(root))
    image = nib.Nifti1Image(np.asarray(image.dataobj), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(np.diag([-2.0, 2, 3, 1]), 1)
    nib.save(image, image_of(root))


def copy_other_patient(root: Path) -> None:
    # case_2 belongs to the other site; another type on disk is still the same image.
    other = array(root / "imagesTr" / "case_2.nii.gz")
    write_nifti(image_of(root), other.astype(np.float32))


PROBLEMS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "image missing": (lambda r: image_of(r).unlink(), r"\[missing-file\] imagesTr/case_1"),
    "label missing": (lambda r: label_of(r).unlink(), r"\[missing-file\] labelsTr/case_1"),
    "truncated": (lambda r: truncate(image_of(r)), r"\[unreadable\] imagesTr/case_1.*: .*again"),
    "no image": (lambda r: label_of(r).write_text("hello"), r"\[unreadable\] labelsTr/case_1"),
    "two frames": (
        lambda r: change(image_of(r), lambda a: np.stack([a, a], axis=-1)),
        r"\[not-3d\] imagesTr/case_1\S*: the array has shape \(8, 7, 6, 2\)",
    ),
    "other size": (
        lambda r: change(label_of(r), lambda a: a[:, :-1]),
        r"\[grid-shape\] labelsTr/case_1\S*: label size \(8, 6, 6\), image size \(8, 7, 6\)",
    ),
    "other place": (
        lambda r: change(label_of(r), lambda a: a, SHIFTED),
        r"\[grid-affine\] labelsTr/case_1\S*: .* by up to 5 \(tolerance 0\.001\)",
    ),
    "sheared": (
        lambda r: change(image_of(r), lambda a: a, SHEARED),
        r"\[bad-geometry\] imagesTr/case_1\S*: the axes are sheared",
    ),
    "two orientations": (break_orientation, r"\[orientation-conflict\] imagesTr/case_1"),
    "NaN": (
        lambda r: change(image_of(r), with_value(np.nan)),
        r"\[non-finite\] imagesTr/case_1\S*: 1 of 336 voxels",
    ),
    "NaN label": (lambda r: change(label_of(r), with_value(np.nan)), r"\[non-finite\] labelsTr"),
    "constant": (
        lambda r: change(image_of(r), lambda a: a * 0 + 9),
        r"\[constant-image\] imagesTr/case_1\S*: every voxel is 9",
    ),
    "other unit": (
        lambda r: change(image_of(r), lambda a: a.astype(np.int16) - 1000),
        r"\[stored-range\] imagesTr/case_1\S*: values -999 to -745 lie outside \[0, 255\]",
    ),
    "unknown label": (
        lambda r: change(label_of(r), with_value(9, np.uint8)),
        r"\[label-values\] labelsTr/case_1\S*: unexpected value\(s\) 9 \(1 voxels\); the label map",
    ),
    "negative label": (
        lambda r: change(label_of(r), with_value(-1, np.int16)),
        r"\[label-values\] .* -1 \(1 voxels\)",
    ),
    "soft label": (
        lambda r: change(label_of(r), with_value(0.5)),
        r"\[label-values\] .* no whole numbers, for example \[0\.5\]",
    ),
    "mirrored": (
        lambda r: change(label_of(r), lambda a: a[::-1]),
        r"\[laterality\] labelsTr/case_1\S*: right part .* lies left of left part",
    ),
    "leaked": (
        copy_other_patient,
        r"\[leaked-image\] imagesTr/case_1\S*: same voxel values as imagesTr/case_2\S* .*"
        r"validation repeats training",
    ),
    "subject gone": (
        lambda r: (image_of(r).unlink(), label_of(r).unlink()),
        r"\[missing-subject\] tiny/case_1: split listed \(training\) lists it",
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_prepare__problem_is_named_and_nothing_is_left(
    prepare: Prepare, raw_set: Path, tmp_path: Path, problem: str
) -> None:
    spoil, message = PROBLEMS[problem]
    spoil(raw_set)
    with pytest.raises(DataProblemsError, match=message) as caught:
        prepare()
    assert len(caught.value.findings) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "tiny.yaml"]


def test_prepare__all_problems_are_listed_together(prepare: Prepare, raw_set: Path) -> None:
    truncate(image_of(raw_set))
    change(label_of(raw_set), with_value(9, np.uint8))
    change(raw_set / "imagesTr" / "case_3.nii.gz", with_value(np.inf))
    with pytest.raises(DataProblemsError, match=r"not prepared: 3 problem\(s\)") as caught:
        prepare()
    kinds = [(finding.file, finding.kind) for finding in caught.value.findings]
    assert kinds == [
        ("imagesTr/case_1.nii.gz", "unreadable"),
        ("imagesTr/case_3.nii.gz", "non-finite"),
        ("labelsTr/case_1.nii.gz", "label-values"),
    ]


def test_prepare__failure_keeps_the_old_folder(
    prepare: Prepare, raw_set: Path, tmp_path: Path
) -> None:
    prepare()
    before = tree(tmp_path / "out")
    truncate(image_of(raw_set))
    with pytest.raises(DataProblemsError):
        prepare(overwrite=True)
    assert tree(tmp_path / "out") == before


def test_prepare__interrupt_leaves_nothing(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medseg_kit.data.prepare.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "tiny.yaml"]


def test_prepare__rest_of_a_killed_run_is_removed(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f".out.partial-{platform.node()}-"
    running, killed = tmp_path / f"{prefix}1", tmp_path / f"{prefix}2"
    for folder in (running, killed):
        (folder / "images").mkdir(parents=True)
    monkeypatch.setattr("medseg_kit.data.prepare.psutil.pid_exists", lambda pid: pid == 1)
    prepare()
    assert running.exists()
    assert not killed.exists()


def test_prepare__empty_label_is_a_warning(prepare: Prepare, raw_set: Path) -> None:
    change(label_of(raw_set), lambda a: a * 0)
    warnings = [(w["kind"], w["file"]) for w in prepare()["warnings"]]
    assert ("empty-label", "labelsTr/case_1.nii.gz") in warnings


def test_prepare__label_empty_for_its_site_is_a_warning(prepare: Prepare, raw_set: Path) -> None:
    change(label_of(raw_set), lambda a: np.where(a == 2, 0, a).astype(np.uint8))
    (warning,) = prepare()["warnings"]
    assert warning["file"] == "sites/site-liver/labels/case_1.nii.gz"
    assert warning["message"] == "no voxel of liver"


def test_prepare__allowed_kind_becomes_a_warning(
    prepare: Prepare, raw_set: Path, tmp_path: Path
) -> None:
    change(label_of(raw_set), lambda a: a, SHIFTED)
    report = prepare(allow=["grid-affine"])
    assert [w["kind"] for w in report["warnings"]] == ["grid-affine"]
    label = nib.load(tmp_path / "out" / "labels" / "case_1.nii.gz")
    assert np.array_equal(label.affine, AFFINE), "the label lies on the grid of its image"


def test_prepare__manifest_allows_with_a_reason(prepare: Prepare, raw_set: Path) -> None:
    image_of(raw_set).unlink()
    label_of(raw_set).unlink()
    report = prepare(sites=None, changes={"allow": {"missing-subject": "a part of the set"}})
    reasons = {w["kind"]: w["reason"] for w in report["warnings"]}
    assert reasons == {"incomplete-set": None, "missing-subject": "a part of the set"}


@pytest.mark.parametrize("kind", ["non-finite", "grid-affin"])
def test_prepare__what_cannot_be_allowed(prepare: Prepare, kind: str) -> None:
    with pytest.raises(UserError, match=f"cannot allow {kind}; can be allowed: grid-affine"):
        prepare(allow=[kind])


def test_prepare__rounding_of_affines_is_tolerated(prepare: Prepare, raw_set: Path) -> None:
    change(label_of(raw_set), lambda a: a, AFFINE + np.eye(4, k=3) * 5e-4)
    assert prepare()["warnings"] == []


def test_prepare__unused_subject_is_a_warning(prepare: Prepare, raw_set: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(raw_set / folder / "case_5.nii.gz", raw_set / folder / "extra.nii.gz")
    kinds = {w["kind"]: w["file"] for w in prepare()["warnings"]}
    assert kinds == {"incomplete-set": "tiny", "unlisted-subject": "tiny/extra"}
