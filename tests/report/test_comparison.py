import json

import pytest

from medseg_kit.report.comparison import (
    budget_check,
    comparison_by_site,
    comparison_table,
    format_comparison,
    paired_tests,
    read_records,
)
from medseg_kit.typing import UserError


def case(subject, label, dice, missed=False):
    return {
        "case": f"{subject}_scan",
        "subject": subject,
        "site": "",
        "label": label,
        "dice": dice,
        "hd_vox": None if missed else 3.0,
        "hd_mm": None,
        "hd95_vox": None if missed else 2.0,
        "hd95_mm": None,
        "missed": missed,
        "spurious": False,
        "voxels_pred": 0 if missed else 10,
        "voxels_reference": 10,
    }


def record(run, dice, *, method=None, seed=0, label="liver", steps=100):
    cases = [case(f"p{i}", label, value, missed=value == 0) for i, value in enumerate(dice)]
    entry = {
        "run": run,
        "method": method or run,
        "seed": seed,
        "label_budget": None,
        "mode": "train",
    }
    return entry | {"local_steps": steps, "cases": cases, "curves": []}


BETTER = [0.90, 0.85, 0.80, 0.95, 0.88, 0.91]
WORSE = [0.80, 0.74, 0.68, 0.82, 0.74, 0.0]


def test_comparison_table__interval_by_patient_over_seeds():
    records = [record("a", BETTER), record("a", [value - 0.02 for value in BETTER], seed=1)]
    (row,) = comparison_table(records)
    assert (row["n"], row["num_patients"], row["num_seeds"]) == (12, 6, 2)
    assert row["dice_mean"] == pytest.approx(sum(BETTER) / 6 - 0.01)
    assert row["dice_low"] < row["dice_mean"] < row["dice_high"]
    assert row["dice_seed_sd"] == pytest.approx(0.02 / 2**0.5)
    assert row["hd95_mm_mean"] is None
    assert row == comparison_table(records)[0]


def test_comparison_by_site__each_site_alone():
    records = [record("a", BETTER), record("b", WORSE)]
    assert comparison_by_site(records) == []  # one site only
    for entry in records:
        for row, site in zip(entry["cases"], ["ct", "ct", "mr", "mr", "mr", "mr"], strict=True):
            row["site"] = site
    rows = comparison_by_site(records)
    found = [(row["site"], row["model"], row["num_patients"]) for row in rows]
    assert found == [("ct", "a", 2), ("ct", "b", 2), ("mr", "a", 4), ("mr", "b", 4)]
    assert rows[0]["dice_mean"] == pytest.approx(sum(BETTER[:2]) / 2)


def test_comparison_table__counts_missed_structures():
    row = comparison_table([record("b", WORSE)])[0]
    assert (row["n_missed"], row["n_hd_undefined"], row["hd95_vox_mean"]) == (1, 1, 2.0)


def test_paired_tests__six_patients_golden():
    (row,) = paired_tests([record("a", BETTER), record("b", WORSE)])
    assert (row["model"], row["reference"], row["n"]) == ("b", "a", 6)
    assert row["wilcoxon_p"] == row["wilcoxon_p_holm"] == pytest.approx(2 / 64)
    assert row["difference_high"] < 0
    with pytest.raises(UserError, match="'c' is no method"):
        paired_tests([record("a", BETTER)], reference="c")


def test_paired_tests__within_a_label_budget():
    records = [
        record(f"{name}{budget}", dice, method=name) | {"label_budget": budget}
        for budget in (7, 3)
        for name, dice in (("a", BETTER), ("b", WORSE))
    ]
    rows = paired_tests(records, reference="a")
    assert [(row["model"], row["reference"]) for row in rows] == [
        ("b, 3 labelled", "a, 3 labelled"),
        ("b, 7 labelled", "a, 7 labelled"),
    ]
    models = [row["model"] for row in comparison_table(records)]
    assert models == ["a, 3 labelled", "b, 3 labelled", "a, 7 labelled", "b, 7 labelled"]


def test_methods__single_organ_runs_complement_each_other():
    records = [
        record("one_liver", BETTER, method="single"),
        record("one_spleen", WORSE, method="single", label="spleen"),
    ]
    assert {(row["model"], row["label"]) for row in comparison_table(records)} == {
        ("single", "liver"),
        ("single", "spleen"),
        ("single", "mean"),
    }
    twice = [*records, record("again", WORSE, method="single")]
    with pytest.raises(UserError, match="one_liver and again of single both score liver"):
        comparison_table(twice)


def test_comparison_table__no_mean_over_fewer_structures_than_others_have():
    """A method whose run for one organ has failed is not compared by the mean of the others."""
    records = [record(f"a_{organ}", BETTER, method="a", label=organ) for organ in ("liver", "lung")]
    records += [record("b_liver", BETTER, method="b")]
    means = {row["method"] for row in comparison_table(records) if row["label"] == "mean"}
    assert means == {"a"}
    tests = paired_tests(records, reference="a")
    assert {row["label"] for row in tests} == {"liver"}


def test_budget_check__equal_stated_and_unequal():
    records = [record("a", BETTER), record("b", WORSE), record("external", WORSE, steps=None)]
    assert budget_check(records)["equal"]
    assert budget_check(records, local_steps=100)["equal"]
    assert not budget_check(records, local_steps=90)["equal"]
    assert not budget_check([*records, record("c", WORSE, steps=120)])["equal"]
    labelled = [records[0] | {"label_budget": n, "local_steps": 100 + n} for n in (1, 3)]
    assert not budget_check(labelled)["equal"]


def test_format_comparison__says_what_a_reader_needs():
    records = [record("a", BETTER), record("b", WORSE, steps=120)]
    text = format_comparison(
        comparison_table(records), paired_tests(records), budget_check(records)
    )
    assert "b minus a, liver: -0.2" in text
    assert "NOT EQUAL" in text


def test_read_records__empty_folder(tmp_path):
    with pytest.raises(UserError, match="medseg study"):
        read_records(tmp_path)
    (tmp_path / "records.jsonl").write_text(json.dumps(record("a", BETTER)) + "\n")
    assert read_records(tmp_path)[0]["run"] == "a"
