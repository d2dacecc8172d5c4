from __future__ import annotations

import math

import pytest
import torch

from medseg_kit.fl.privacy import describe_error, scrub, shareable_metrics


@pytest.mark.parametrize(
    "text",
    [
        "cannot open /srv/hospital/John Doe/scan.nii.gz",
        "No such file: '/srv/hospital/patients of 2020/scan one.nii.gz'",
        r"C:\patients\doe\scan.nii",
        "scan-doe.nii.gz is broken",
        "header of DOE^JOHN is wrong",
        "record 12345678",
        "patient-17 failed (patient-17)",
        "relative ../doe/scan",
    ],
)
def test_scrub__removes_paths_and_patients(text):
    cleaned = scrub(text, ["patient-17"])
    for secret in ("doe", "DOE", "John", "hospital", "scan", "2020", "12345678", "patient-17"):
        assert secret not in cleaned
    assert "/" not in cleaned


def test_scrub__folders_with_spaces_and_names_beside_underscores():
    text = "/data/Doe John Peter/x does not exist; patient-17_frame01 and patient-17_ED_to_a"
    cleaned = scrub(text, ["patient-17"], ["/data/Doe John Peter", "."])
    assert cleaned == "<path> does not exist; <case>_frame01 and <case>_ED_to_a"
    assert scrub("check the data set; metadata lost", places=["data"]) == (
        "check the data set; metadata lost"
    )


def test_shareable_metrics__counts_the_cases_behind_a_value():
    """A case without the organ has no Dice: of five cases one may be all that a mean tells of."""
    counts = {"num_cases": 5, "min_cases": 5}
    shared, why = shareable_metrics({"dice": 0.5}, **counts, counted={"dice": 1})
    assert (shared, why) == ({}, "fewer than min_cases=5 validation cases show an organ")
    shared, _ = shareable_metrics({"dice": 0.5, "loss": 1.0}, **counts, counted={"dice": 4})
    assert shared == {"loss": 1.0}


def test_scrub__keeps_the_message_and_bounds_it():
    assert scrub("expected 3 channels,\n got 4") == "expected 3 channels, got 4"
    assert len(scrub("word " * 500)) == 300


def test_describe_error__names_the_innermost_cause():
    outer = RuntimeError("Failed to evaluate '/srv/bundle'")
    outer.__cause__ = ValueError("organ left is unknown")
    assert describe_error(outer) == "ValueError: organ left is unknown"


def test_shareable_metrics__only_finite_scalars():
    metrics = {
        "dice": 0.5,
        "tensor": torch.tensor(0.25),
        "cases": [0.1, 0.2],
        "per_case": torch.rand(4),
        "nan": math.nan,
        "text": "p17",
        "flag": True,
        "none": None,
    }
    shared, why = shareable_metrics(metrics, num_cases=5, min_cases=5)
    assert shared == {"dice": 0.5, "tensor": 0.25}
    assert why is None


def test_shareable_metrics__too_few_cases():
    shared, why = shareable_metrics({"dice": 0.5}, num_cases=4, min_cases=5)
    assert shared == {}
    assert why == "4 validation cases, fewer than min_cases=5"
