"""The report of a study from its records alone."""

import json

import pytest

from medseg_kit.report.comparison import comparison_by_site
from medseg_kit.report.curves import pseudo_label_panels, validation_panels
from medseg_kit.report.sections import (
    cost_rows,
    difference_rows,
    distance_rows,
    printed_rows,
    site_rows,
)
from medseg_kit.report.settings import printed_beside
from medseg_kit.report.study import page_notes, write_study_report
from medseg_kit.typing import UserError
from tests.report.test_comparison import BETTER, WORSE, record

HARDWARE = {"gpu": None, "processor": "CPU", "torch_threads": 1, "cores": 2}
PRINTED = [
    {"method": "a", "label_budget": 3, "label": "liver", "dice": 0.8, "hd95": 4, "source": "t. 1"},
    {"method": "a", "label_budget": 70, "label": "liver", "dice": 0.9, "hd95": 2, "source": "t. 1"},
    {"method": "z", "label_budget": 3, "label": "liver", "dice": 0.7, "hd95": 9, "source": "t. 2"},
]


def run(method, dice, budget, seed):
    points = [[1.0, 0.2 + seed / 10], [2.0, 0.6]]
    return record(method, dice, seed=seed) | {
        "label_budget": budget,
        "policy": "strict",
        "checkpoint_rule": {"stated": "last", "applied": "last"},
        "hardware": HARDWARE,
        "versions": {"torch": "2", "monai": "1", "medseg_kit": "0"},
        "cost": {"parameters": 1_810_000, "seconds_per_step": 0.25, "registration_seconds": None},
        "curves": [{"panel": "validation", "series": "val_mean_dice", "points": points}],
        "pseudo_labels": [{"branch": "student", "points": points}],
    }


RECORDS = [
    run(method, dice, budget, seed)
    for budget in (7, 3)
    for seed in (0, 1)
    for method, dice in (("a", WORSE), ("b", BETTER))
]


SETTINGS = {
    "name": "Toy study",
    "test": {"data": "gone", "section": "test"},
    "reference": "a",
    "budget": {},
    "printed": PRINTED,
    "sweep": {},
}


def write_records(folder, records=RECORDS):
    lines = (json.dumps(item) + "\n" for item in records)
    (folder / "records.jsonl").write_text("".join(lines))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_records(folder)
    (folder / "study.json").write_text(json.dumps(SETTINGS))
    write_study_report(folder, folder / "report")
    return folder / "report"


def test_write_study_report__files_and_sections(report):
    names = {path.name for path in report.iterdir()}
    assert {"table.csv", "tests.csv", "cost.csv", "printed.csv", "comparison.json"} <= names
    assert {"dice_3_labelled.png", "dice_7_labelled.svg", "label_efficiency.png"} <= names
    assert {"curves.svg", "pseudo_labels.svg", "pseudo_labels.json"} <= names
    page = (report / "report.html").read_text()
    for title in ("Paired differences", "Surface distance", "Quality of the pseudo-labels", "Cost"):
        assert title in page
    assert "Features within" not in page  # neither images nor weights


def test_page__seeds_missed_of_how_many_and_the_rule(report):
    page = (report / "report.html").read_text()
    assert "<th>seeds</th>" in page
    assert "2 of 12 missed" in page  # one of six patients, two seeds
    assert "checkpoint rule: last;" in page


def test_write_study_report__before_the_reference_is_finished(tmp_path):
    write_records(tmp_path, [item for item in RECORDS if item["method"] == "b"])
    found = write_study_report(tmp_path, tmp_path / "report", settings=SETTINGS)
    assert found["tests"] == []
    page = (tmp_path / "report" / "report.html").read_text()
    assert "No run of the reference a is finished" in page


def test_write_study_report__records_alone_need_the_study_file(tmp_path):
    write_records(tmp_path)
    with pytest.raises(UserError, match="--study_file FILE"):
        write_study_report(tmp_path, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_page_notes__a_rule_that_was_not_applied():
    rule = {"stated": "best_validation", "applied": "as given"}
    notes = page_notes([{**RECORDS[0], "checkpoint_rule": rule}], {"equal": True})
    assert "checkpoint rule: as given (stated: best_validation);" in notes[0]


def test_site_rows__a_row_a_configuration_and_site():
    one = RECORDS[0]
    cases = [{**c, "site": ("north", "south")[i % 2]} for i, c in enumerate(one["cases"])]
    rows = site_rows(comparison_by_site([{**one, "cases": cases}]))
    assert [row["site"] for row in rows] == ["north", "south"]
    assert list(rows[0]) == ["configuration", "site", "liver"]
    assert rows[0]["liver"].startswith("0.740\n")  # of .80, .68, .74


def test_curves__a_panel_a_budget_means_over_seeds():
    panels = validation_panels(RECORDS)
    assert list(panels) == ["3 labelled patients", "7 labelled patients"]
    assert panels["3 labelled patients"]["b"] == [(1.0, 0.25), (2.0, 0.6)]
    pseudo = pseudo_label_panels(RECORDS)
    assert pseudo["a, 3 labelled"] == {"student": [(1.0, 0.25), (2.0, 0.6)]}
    assert pseudo_label_panels([record("a", BETTER)]) == {}


def test_curves__a_federation_has_a_line_a_site():
    curves = [
        {"panel": "north", "series": "federated", "points": [[1, 0.5]]},
        {"panel": "north", "series": "own model", "points": [[1, 0.4]]},
    ]
    federated = record("fed", BETTER) | {"mode": "federate", "curves": curves}
    assert validation_panels([federated]) == {"fed: fed": {"north": [(1.0, 0.5)]}}


def test_difference_rows__a_cell_a_structure_with_its_interval(report):
    tests = json.loads((report / "comparison.json").read_text())["tests"]
    rows = difference_rows(tests)
    assert [row["configuration"] for row in rows] == ["b, 3 labelled", "b, 7 labelled"]
    difference, interval = rows[0]["liver"].split("\n")
    assert difference.startswith("+0.2")
    assert " to +" in interval


def test_distance_rows__voxels_where_no_spacing_is_known(report):
    table = json.loads((report / "comparison.json").read_text())["table"]
    unit, rows = distance_rows(table)
    assert (unit, rows[0]["liver"]) == ("voxels", "2.0\n2.0 to 2.0")


def test_printed_rows__budgets_that_were_run_ours_first():
    rows = printed_rows(printed_beside(RECORDS, PRINTED))
    assert [row["configuration"] for row in rows] == ["a, 3 labelled", "z, 3 labelled"]
    assert rows[1]["Dice, ours"] == "not run"
    assert rows[0]["HD95, ours (voxels)"] == "2.0"
    assert rows[0]["HD, ours (voxels)"] == "3.0"


def test_cost_rows__units_and_only_columns_with_values():
    empty = dict.fromkeys(("gflops", "seconds_per_case", "peak_memory_gib"))
    row = {"method": "a", "hardware": "CPU", "runs": 2, "parameters": 1_810_000, **empty}
    row |= {"seconds_per_step": 0.25, "peak_gpu_memory_gib": None, "registration_seconds": 5123.4}
    assert cost_rows([row])[0] == {
        "method": "a",
        "hardware": "CPU",
        "runs": "2",
        "parameters (M)": "1.81",
        "seconds a step": "0.250",
        "registration (s)": "5,123",
    }
