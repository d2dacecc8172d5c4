import csv
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from medseg_kit.cli.evaluate import evaluate
from medseg_kit.study.evaluation import evaluate_predictions
from medseg_kit.study.references import find_references
from medseg_kit.typing import UserError
from tests.study.conftest import AFFINE, save_label, two_organs, write_datalist


def scores(dataset, **options):
    folder, pred_dir = dataset
    records = evaluate_predictions(pred_dir, find_references(folder, **options))
    return {(record.case, record.label): record for record in records}


def test_evaluate__native_grid_golden(dataset):
    table = scores(dataset)
    assert len(table) == 6
    assert table["p0", "liver"].dice == 1.0
    assert table["p1", "liver"].dice == pytest.approx(0.75)
    assert table["p1", "liver"].hd95_vox == table["p1", "liver"].hd95_mm == 1.0
    assert table["p2", "spleen"].site == "south"


def test_evaluate__mm_follow_the_axis_of_the_spacing(dataset):
    save_label(dataset[1] / "p0.nii.gz", np.roll(two_organs(), 1, axis=2))
    liver = scores(dataset)["p0", "liver"]
    assert (liver.hd95_vox, liver.hd95_mm) == (1.0, 2.0)


def test_evaluate__lost_spacing_leaves_mm_empty(dataset):
    write_datalist(dataset[0], spacing="lost")
    liver = scores(dataset)["p1", "liver"]
    assert liver.hd95_vox == 1.0
    assert np.isnan(liver.hd95_mm)


def test_evaluate__labels_never_annotated_are_left_out(dataset):
    write_datalist(dataset[0], annotated=["spleen"])
    assert {label for _, label in scores(dataset)} == {"spleen"}


def test_evaluate__annotated_of_a_case_wins(dataset):
    cases = json.loads((dataset[0] / "datalist.json").read_text())["test"]
    cases[1]["annotated"] = ["liver"]
    write_datalist(dataset[0], test=cases)
    assert ("p1", "spleen") not in scores(dataset)
    assert ("p0", "spleen") in scores(dataset)


def test_evaluate__organs_and_site_select(dataset):
    assert set(scores(dataset, organs=["liver"], site="south")) == {("p2", "liver")}
    with pytest.raises(UserError, match=r"kidney.*--organs"):
        scores(dataset, organs=["kidney"])
    with pytest.raises(UserError, match=r"'east'.*north.*south"):
        scores(dataset, site="east")


def test_evaluate__missing_prediction_is_named(dataset):
    (dataset[1] / "p1.nii.gz").unlink()
    with pytest.raises(UserError, match="no prediction for 1 of 3 cases: p1"):
        scores(dataset)


@pytest.mark.parametrize("change", ["shape", "affine"])
def test_evaluate__other_grid_names_both_files_and_affines(dataset, change):
    label = two_organs()[:, :, :-1] if change == "shape" else two_organs()
    affine = AFFINE if change == "shape" else np.diag([-1.0, 1.0, 2.0, 1.0])
    save_label(dataset[1] / "p2.nii.gz", label, affine)
    with pytest.raises(UserError, match=r"pred/p2\.nii\.gz.*affine.*labels/p2\.nii\.gz.*affine"):
        scores(dataset)


def test_evaluate__rounded_header_is_the_same_grid(dataset):
    save_label(dataset[1] / "p0.nii.gz", two_organs(), AFFINE + np.diag([1e-4, 0, 0, 0]))
    assert scores(dataset)["p0", "liver"].dice == 1.0


def test_evaluate__probabilities_are_no_label_map(dataset):
    nib.save(
        nib.Nifti1Image(np.full((10, 10, 6), 0.5, np.float32), AFFINE), dataset[1] / "p0.nii.gz"
    )
    with pytest.raises(UserError, match=r"p0\.nii\.gz.*whole numbers"):
        scores(dataset)


def test_evaluate__nrrd_is_compared_in_the_same_space(dataset):
    affine = np.array([[0, -1.5, 0, 10], [1.0, 0, 0, -7], [0, 0, 2.0, 3], [0, 0, 0, 1]])
    label = np.roll(two_organs(), 1, axis=1)
    save_label(dataset[0] / "labels" / "p0.nii.gz", two_organs(), affine)
    save_label(dataset[1] / "p0.nii.gz", label, affine)
    expected = scores(dataset)["p0", "liver"]
    image = SimpleITK.ReadImage(str(dataset[1] / "p0.nii.gz"))
    (dataset[1] / "p0.nii.gz").unlink()
    SimpleITK.WriteImage(image, str(dataset[1] / "p0.nrrd"))
    assert scores(dataset)["p0", "liver"] == expected
    assert (expected.hd95_vox, expected.hd95_mm) == (1.0, 1.5)


def test_evaluate__damaged_file_is_named(dataset):
    path = dataset[1] / "p1.nii.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r"p1\.nii\.gz cannot be read"):
        scores(dataset)


def test_find_references__names_follow_the_predictor(dataset):
    folder, pred_dir = dataset
    for name in ("a", "b"):
        save_label(folder / "images" / name / "scan.nii.gz", two_organs())
        save_label(pred_dir / name / "scan.nii.gz", two_organs())
    pairs = [
        {"image": f"images/{n}/scan.nii.gz", "label": "labels/p0.nii.gz", "subject": n}
        for n in "ab"
    ]
    write_datalist(folder, test=pairs)
    assert set(scores(dataset)) == {
        (f"{n}/scan", organ) for n in "ab" for organ in ("liver", "spleen")
    }


def test_find_references__the_support_scan_is_no_query(dataset):
    cases = json.loads((dataset[0] / "datalist.json").read_text())["test"]
    cases[0]["support"] = True
    write_datalist(dataset[0], training=cases, test=[])
    found = find_references(dataset[0], section="training")
    assert [reference.case for reference in found] == ["p1", "p2"]


def test_find_references__empty_section_and_missing_source(dataset, tmp_path):
    with pytest.raises(UserError, match=r"'validation'.*--section"):
        find_references(dataset[0], section="validation")
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        find_references(tmp_path / "nowhere")


def test_find_references__json_list_and_label_folder(dataset):
    folder, _ = dataset
    pairs = [{"image": "images/p0.nii.gz", "label": "labels/p0.nii.gz"}]
    (folder / "pairs.json").write_text(
        json.dumps({"labels": {"0": "b", "1": "a", "2": "c"}, "test": pairs})
    )
    (case,) = find_references(folder / "pairs.json")
    assert (case.subject, dict(case.values)) == ("p0", {"a": 1, "c": 2})
    cases = find_references(folder / "labels", organs=["liver", "spleen"])
    assert [case.case for case in cases] == ["p0", "p1", "p2"]
    with pytest.raises(UserError, match="--organs"):
        find_references(folder / "labels")


def test_cli_evaluate__writes_tables_and_box_plots(dataset, tmp_path, capsys):
    save_label(dataset[1] / "p2.nii.gz", np.zeros((10, 10, 6)))
    out = tmp_path / "out"
    assert evaluate(pred=str(dataset[1]), reference=str(dataset[0]), out=str(out)) == 0
    summary = json.loads((out / "summary.json").read_text())
    liver = summary["by_label"][0]
    assert (liver["n"], liver["n_missed"], liver["n_hd_undefined"]) == (3, 1, 1)
    assert liver["dice_mean"] == pytest.approx((1 + 0.75 + 0) / 3)
    assert liver["hd95_vox_mean"] == pytest.approx(0.5)
    assert {row["site"] for row in summary["by_label_and_site"]} == {"north", "south"}
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert rows[-1]["missed"] == "True"
    for name in ("summary.csv", "dice.svg", "dice.png", "hd95_vox.svg", "hd95_mm.png"):
        assert (out / name).stat().st_size > 0
    assert "missed" in capsys.readouterr().out


def test_cli_evaluate__reference_policy_scores_a_missed_structure_as_published(dataset, tmp_path):
    save_label(dataset[1] / "p2.nii.gz", np.zeros((10, 10, 6)))
    paths = {"pred": str(dataset[1]), "reference": str(dataset[0]), "out": str(tmp_path / "out")}
    evaluate(**paths, policy="reference")
    liver = json.loads((tmp_path / "out" / "summary.json").read_text())["by_label"][0]
    assert liver["hd95_vox_mean"] == pytest.approx(1 / 3)
    assert (liver["n_missed"], liver["n_hd_undefined"]) == (1, 0)
    with pytest.raises(UserError, match="--policy 'lenient'"):
        evaluate(**paths, policy="lenient")


def test_evaluate_command__scores_the_rest_and_names_what_is_missing(dataset, tmp_path, capsys):
    (dataset[1] / "p1.nii.gz").unlink()
    paths = {"pred": str(dataset[1]), "reference": str(dataset[0]), "out": str(tmp_path / "out")}
    assert evaluate(**paths) == 1
    assert "no prediction for p1" in capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["num_cases"], summary["not_predicted"]) == (2, ["p1"])
    for file in dataset[1].glob("*.nii.gz"):
        file.unlink()
    with pytest.raises(UserError, match="no prediction for 3 of 3 cases"):
        evaluate(**paths)


def test_evaluate__structures_by_the_names_of_the_prediction(dataset):
    labels = {"1": "spleen", "2": "liver"}  # the other way round than in the reference
    swapped = np.array([0, 2, 1])[np.asarray(two_organs())]
    save_label(dataset[1] / "p0.nii.gz", swapped)
    (dataset[1] / "p0.json").write_text(json.dumps({"labels": labels}))
    table = scores(dataset)
    assert (table["p0", "liver"].dice, table["p0", "spleen"].dice) == (1.0, 1.0)
    (dataset[1] / "p0.json").write_text(json.dumps({"labels": {"1": "liver"}}))
    with pytest.raises(UserError, match=r"has no spleen, only liver; .*--organs"):
        scores(dataset)
    for labels in ({"1": "label 1"}, {"a": "liver"}, {"1": ["liver"]}, [1]):
        (dataset[1] / "p0.json").write_text(json.dumps({"labels": labels}))
        assert scores(dataset)["p0", "liver"].dice < 1  # it tells no name: by value


def test_evaluate_command__a_case_on_another_grid_costs_only_itself(dataset, tmp_path, capsys):
    save_label(dataset[1] / "p1.nii.gz", np.zeros((5, 5, 5)))
    paths = {"pred": str(dataset[1]), "reference": str(dataset[0]), "out": str(tmp_path / "out")}
    assert evaluate(**paths) == 1
    assert "p1 is in no mean: the grids differ" in capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["num_cases"], list(summary["not_scored"])) == (2, ["p1"])
