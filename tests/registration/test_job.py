"""Registering a data set: pairs, resumption, failures, chosen labels."""

import json

import numpy as np
import pytest
import SimpleITK

from medseg_kit.cli.register import register
from medseg_kit.registration.cases import ordered_pairs, read_cases
from medseg_kit.registration.job import read_transform, register_pairs
from medseg_kit.registration.selection import score_pair
from medseg_kit.typing import UserError


def test_pairs__needed_and_all(dataset):
    cases = read_cases(dataset, labelled=1).training()
    needed = {(fixed.key, moving.key) for fixed, moving in ordered_pairs(cases)}
    assert needed == {(x, y) for x in "abcd" for y in "abcd" if x != y and "a" in (x, y)}
    assert len(ordered_pairs(cases, which="all")) == 12
    with pytest.raises(UserError, match="choose needed or all"):
        ordered_pairs(cases, which="some")
    with pytest.raises(UserError, match="no pair"):
        ordered_pairs(cases[:1])


@pytest.mark.slow
def test_register__writes_labels_of_the_best_patient_and_continues(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    assert register(str(dataset), out=str(out), labelled=2) == 0
    assert "10 pairs, 0 failed" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["mean_warped_label_dice"] > 0.85
    assert report["registered_labels"] == 2
    rows = json.loads((out / "labelled_2" / "selection.json").read_text())
    assert {row["case"] for row in rows} == {"c", "d"}
    for row in rows:
        image = SimpleITK.ReadImage(str(dataset / "images" / f"{row['case']}.nii.gz"))
        truth = SimpleITK.ReadImage(str(dataset / "labels" / f"{row['case']}.nii.gz"))
        warped = SimpleITK.ReadImage(str(out / "labelled_2" / f"{row['case']}.nii.gz"))
        assert warped.GetSpacing() == image.GetSpacing()
        one, other = (SimpleITK.GetArrayFromImage(item) > 0 for item in (truth, warped))
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.85

    before = {path: path.stat().st_mtime_ns for path in (out / "pairs").glob("*.h5")}
    assert register(str(dataset), out=str(out), labelled=2) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (out / "pairs").glob("*.h5")}


@pytest.mark.slow
def test_scores__a_faithful_round_trip_wins(dataset, tmp_path):
    data = read_cases(dataset, labelled=1)
    cases = {case.key: case for case in data.training()}
    pairs = [(cases["a"], cases["b"]), (cases["b"], cases["a"])]
    register_pairs(pairs, tmp_path, data=data)
    good = score_pair(tmp_path, cases["b"], cases["a"], data=data)
    broken = SimpleITK.AffineTransform(3)
    broken.Translate((9.0, 6.0, 0.0))
    SimpleITK.WriteTransform(broken, str(tmp_path / "pairs" / "b__a.h5"))
    bad = score_pair(tmp_path, cases["b"], cases["a"], data=data)
    assert good.score < bad.score
    assert good.coverage > 0.8
    assert score_pair(tmp_path, cases["c"], cases["a"], data=data) is None


def test_failing_pair__is_recorded_and_left_out(dataset, tmp_path):
    path = dataset / "images" / "b.nii.gz"
    flat = SimpleITK.ReadImage(str(path)) * 0
    SimpleITK.WriteImage(flat, str(path))
    data = read_cases(dataset, labelled=1)
    cases = {case.key: case for case in data.training()}
    (record,) = register_pairs([(cases["a"], cases["b"])], tmp_path, data=data)
    assert not record["success"]
    assert "one intensity only" in record["reason"]
    assert read_transform(tmp_path, "a", "b") is None


def test_method__unknown(dataset, tmp_path):
    data = read_cases(dataset)
    with pytest.raises(UserError, match="method 'magic'"):
        register_pairs([], tmp_path, data=data, method="magic")


def test_cases__labels_and_frames(dataset):
    data = read_cases(dataset, labelled=1)
    assert [case.labelled for case in data.training()] == [True, False, False, False]
    assert not data.nominal_spacing
    assert np.all([case.image.is_file() for case in data.cases])
