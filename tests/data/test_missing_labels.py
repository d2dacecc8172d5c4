"""Subjects and labels that are not there: named, or for training images allowed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from medseg_kit.data.budgets import labelled_flags
from medseg_kit.data.datalist import load_datalist
from medseg_kit.data.findings import DataProblemsError
from medseg_kit.data.pooling import load_pooled_datalist
from medseg_kit.data.verify import verify_dataset
from medseg_kit.typing import UserError
from tests.data.conftest import SUBJECTS, Prepare, tiny_manifest

ORGANS = ["liver", "parts"]


def test_prepare__training_images_without_a_label(
    prepare: Prepare, raw_set: Path, tmp_path: Path
) -> None:
    (raw_set / "labelsTr" / "case_2.nii.gz").unlink()
    with pytest.raises(DataProblemsError, match=r"\[missing-label\] labelsTr/case_2.*--allow miss"):
        prepare()
    report = prepare(allow=["missing-label"])
    assert [w["kind"] for w in report["warnings"]] == ["missing-label"]
    assert report["sites"]["site-liver"]["labelled"] == ["case_0"]
    assert report["sites"]["site-parts"]["labelled"] == []
    record = next(r for r in report["records"] if r["case"] == "case_2")
    assert (record["labelled"], record["voxels"], record["ml"]) == (False, {}, {})
    for folder in (tmp_path / "out", tmp_path / "out" / "sites" / "site-parts"):
        cases = load_datalist(folder, "training", organs=ORGANS)
        (case,) = [case for case in cases if case["subject"] == "case_2"]
        assert "label" not in case
        assert case["labelled"] is False
        assert labelled_flags(cases, "all") == ["label" in case for case in cases]
    (only,) = load_datalist(tmp_path / "out", "training", organs=ORGANS, labelled_only=True)
    assert only["subject"] == "case_0"
    site = tmp_path / "out" / "sites" / "site-parts"
    with pytest.raises(UserError, match="none of the 1 training cases"):
        load_datalist(site, "training", organs=ORGANS, labelled_only=True)
    sites = load_pooled_datalist(
        tmp_path / "out" / "sites", "training", organs=ORGANS, labelled_only=True
    )
    assert [case["subject"] for case in sites] == ["case_0"]
    assert verify_dataset(tmp_path / "out") == ([], [])


def test_prepare__a_site_lists_a_subject_that_is_not_there(prepare: Prepare) -> None:
    splits = {
        "listed": {"rule": "listed", "source": "t", "training": "others", "test": SUBJECTS[4:]}
    }
    sites = copy.deepcopy(tiny_manifest()["sites"])
    sites["pair"]["members"]["site-liver"]["training"].append("case_l")
    changes = {"splits": splits, "default_split": "listed", "sites": sites}
    with pytest.raises(DataProblemsError, match=r"case_l: site site-liver \(training\) lists it"):
        prepare(changes=changes)


@pytest.mark.parametrize("subject", ["case_1", "case_4"])
def test_prepare__validation_and_test_need_a_label(
    prepare: Prepare, raw_set: Path, subject: str
) -> None:
    (raw_set / "labelsTr" / f"{subject}.nii.gz").unlink()
    with pytest.raises(DataProblemsError, match=rf"\[missing-file\] labelsTr/{subject}"):
        prepare(allow=["missing-label"])
