"""Registering a data set: pairs, resumption, failures, chosen labels."""

import dataclasses
import json

import pytest
import SimpleITK
import torch

from medseg_kit.cli.register import register, segment
from medseg_kit.registration.cases import nominal, ordered_pairs, read_cases
from medseg_kit.registration.job import register_pairs
from medseg_kit.registration.parallel import run_parallel
from medseg_kit.registration.propagate import propagate_labels, write_empty_label
from medseg_kit.registration.selection import Rule, Score, choose, score_images, select
from medseg_kit.registration.settings import make_settings
from medseg_kit.registration.store import PairStore
from medseg_kit.registration.volumes import read_image
from medseg_kit.typing import UserError
from tests.registration.conftest import ellipsoid, overlap


def shifted(x):
    return SimpleITK.TranslationTransform(3, (x, 0.0, 0.0))


def make_store(folder):
    return PairStore(folder / "out", "MR", make_settings(modality="MR"))


def read(path):
    return SimpleITK.ReadImage(str(path))


def test_pairs__needed_and_all(dataset):
    cases = read_cases(dataset, labelled=1).section()
    needed = {(fixed.key, moving.key) for fixed, moving in ordered_pairs(cases)}
    assert needed == {(x, y) for x in "abcd" for y in "abcd" if x != y and "a" in (x, y)}
    assert len(ordered_pairs(cases, which="all")) == 12
    with pytest.raises(UserError, match="choose needed or all"):
        ordered_pairs(cases, which="some")
    with pytest.raises(UserError, match="no pair"):
        ordered_pairs(cases[:1])


def test_pairs__frames_apart_or_the_first_for_all(make_dataset):
    dataset = make_dataset(frames=("ED", "ES"))
    apart = ordered_pairs(read_cases(dataset, labelled=1).section())
    assert len(apart) == 12
    assert all(fixed.frame == moving.frame for fixed, moving in apart)
    shared = ordered_pairs(read_cases(dataset, labelled=1, per_case=True).section())
    assert len(shared) == 6
    assert {case.source[0] for pair in shared for case in pair} == {f"{x}_ED" for x in "abcd"}


def test_spacing__lost_takes_the_nominal_one_or_asks_for_it(make_dataset):
    assert nominal((256, 216, 10)) == (1.5, 1.5, 10.0)
    assert nominal((14, 216, 216)) == (5.0, 1.5, 1.5)
    dataset = make_dataset(spacing="lost")
    with pytest.raises(UserError, match="--nominal_spacing"):
        read_cases(dataset)
    given = read_cases(dataset, nominal_spacing=[2, 2, 8]).section()
    assert given[0].spacing == (2.0, 2.0, 8.0)
    with pytest.raises(UserError, match="three positive numbers"):
        read_cases(dataset, nominal_spacing=[2, 2])
    with pytest.raises(UserError, match="the spacing is valid"):
        read_cases(make_dataset("valid"), nominal_spacing=[2, 2, 8])


@pytest.mark.slow
def test_register__writes_labels_of_the_best_patient_and_continues(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    assert register(str(dataset), out=str(out), labelled=[2]) == 0
    assert "10" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["pairs"]["number"] == 10
    assert report["pairs"]["failed"] == []
    assert report["labelled"]["mean"]["dice"] > 0.85
    assert report["labelled"]["mean"]["dice"] > report["labelled"]["mean"]["dice_unregistered"]
    assert report["registered_labels"] == {"2": {"number": 2, "without": []}}
    rows = json.loads((out / "labelled_2" / "selection.json").read_text())
    assert {row["case"] for row in rows} == {"c", "d"}
    for row in rows:
        name = f"{row['case']}.nii.gz"
        warped = read(out / "labelled_2" / name)
        assert warped.GetSpacing() == read(dataset / "images" / name).GetSpacing()
        assert overlap(read(dataset / "labels" / name), warped) > 0.85
    assert (out / "maps.pt").is_file()

    def times():
        return {path: path.stat().st_mtime_ns for path in out.glob("*/*") if path.suffix != ".json"}

    before = times()
    assert register(str(dataset), out=str(out), labelled=[2]) == 0
    assert times() == before


@pytest.mark.slow
def test_segment__by_registration_alone(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # paths as the README writes them
    out = tmp_path / "pred"
    assert segment(dataset.name, out="pred", registration="registration", labelled=2) == 0
    assert "1 of 1 volumes segmented" in capsys.readouterr().out
    assert overlap(read(dataset / "labels" / "e.nii.gz"), read(out / "e.nii.gz")) > 0.85


def test_segment__a_volume_without_a_registration_may_get_an_empty_label(dataset, tmp_path):
    case = read_cases(dataset, labelled=1).section()[0]
    write_empty_label(case, tmp_path / "empty.nii.gz")
    label, image = read(tmp_path / "empty.nii.gz"), SimpleITK.ReadImage(str(case.image))
    assert not SimpleITK.GetArrayViewFromImage(label).any()
    assert (label.GetSize(), label.GetOrigin()) == (image.GetSize(), image.GetOrigin())


@pytest.mark.slow
def test_register__an_unreadable_volume_costs_only_its_own_pairs(dataset, tmp_path):
    (dataset / "images" / "d.nii.gz").write_bytes(b"no image")
    out = tmp_path / "out"
    assert register(str(dataset), out=str(out), labelled=[1]) == 1
    report = json.loads((out / "report.json").read_text())
    assert {(row["fixed"], row["moving"]) for row in report["pairs"]["failed"]} == {
        ("a", "d"),
        ("d", "a"),
    }
    assert [row["case"] for row in report["registered_labels"]["1"]["without"]] == ["d"]
    assert (out / "labelled_1" / "b.nii.gz").is_file()
    assert torch.load(out / "maps.pt", weights_only=True)["keys"] == ["a", "b", "c"]


def test_store__a_changed_image_or_setting_is_registered_again(dataset, tmp_path):
    first, second = read_cases(dataset, labelled=1).section()[:2]
    store = make_store(tmp_path)
    store.save(first, second, {"success": True}, shifted(2))
    assert store.transform(first, second).GetParameters() == (2.0, 0.0, 0.0)
    assert store.transform(second, first) is None
    other = dataclasses.replace(store, settings=make_settings("affine", modality="MR"))
    assert other.transform(first, second) is None
    SimpleITK.WriteImage(ellipsoid((5, 0, 0))[0], str(second.image))
    assert store.transform(first, second) is None


def test_scores__a_faithful_round_trip_wins():
    image, _ = ellipsoid()
    other, _ = ellipsoid((2, 0, 0))
    there, back = shifted(-3.0), shifted(3.0)  # two voxels of 1.5 mm
    good = score_images(image, other, there, back, labelled="good")
    bad = score_images(image, other, there, shifted(12.0), labelled="bad")
    assert good.score < bad.score
    weighted = score_images(image, other, there, back, rule=Rule(rmse_weight=2.0))
    assert weighted.score == pytest.approx(good.score + good.rmse)
    assert good.coverage > 0.8
    assert choose([bad, good]).labelled == "good"
    assert choose([Score("far", -2.0, 0.0, 2.0, coverage=0.1)]) is None


def test_scores__the_way_there_is_onto_the_labelled_volume(dataset, tmp_path):
    """Equation 6.9: A(q, j) takes the target j to the labelled volume q, A(j, q) takes it back."""
    labelled, target = read_cases(dataset, labelled=1).section()[:2]
    store, back = make_store(tmp_path), SimpleITK.AffineTransform(3)
    back.Rotate(0, 1, 0.2)
    store.save(labelled, target, {"success": True}, shifted(6.0))  # A(q, j)
    store.save(target, labelled, {"success": True}, back)  # A(j, q)
    (found,) = select(store, target, [labelled])["scores"]
    images = [read_image(case, "MR") for case in (target, labelled)]
    expected = score_images(*images, shifted(6.0), back)
    assert found["score"] == pytest.approx(expected.score, abs=1e-5)
    assert found["coverage"] == pytest.approx(expected.coverage, abs=1e-5)


def test_labels__one_labelled_volume_is_forced(dataset, tmp_path):
    data = read_cases(dataset, labelled=1)
    store = make_store(tmp_path)
    labelled, target, without = data.section()[:3]
    store.save(target, labelled, {"success": True}, shifted(-3.0))  # no way back: nothing to score
    rows = propagate_labels(
        store, store.folder / "labelled_1", targets=[target, without], candidates=[labelled]
    )
    assert [row["chosen"] for row in rows] == ["a", None]
    assert "no registration with a labelled volume" in rows[1]["reason"]
    assert sorted(path.name for path in (store.folder / "labelled_1").glob("*.gz")) == ["b.nii.gz"]


def test_labels__a_random_choice_is_any_registered_volume_and_stays(dataset, tmp_path):
    data = read_cases(dataset, labelled=2)
    store = make_store(tmp_path)
    first, second, *targets = data.section()
    for target in targets:
        store.save(target, first, {"success": True}, shifted(-3.0))
    found = [select(store, t, [first, second], rule=Rule("random"))["chosen"] for t in targets]
    assert found == ["a", "a"]  # the other one is not registered
    for target in targets:
        store.save(target, second, {"success": True}, shifted(-3.0))
    found = [select(store, t, [first, second], rule=Rule("random"))["chosen"] for t in targets]
    assert found == [
        select(store, t, [first, second], rule=Rule("random"))["chosen"] for t in targets
    ]
    assert set(found) <= {"a", "b"}
    assert select(store, targets[0], [], rule=Rule("random"))["chosen"] is None


def test_register__unknown_choice(dataset, tmp_path):
    with pytest.raises(UserError, match="choose one of"):
        register(str(dataset), out=str(tmp_path), choice="worst")
    with pytest.raises(UserError, match="give two numbers"):
        register(str(dataset), out=str(tmp_path), score_weights=[1.0])


def test_failing_pair__is_recorded_left_out_and_tried_again(dataset, tmp_path):
    path = dataset / "images" / "b.nii.gz"
    SimpleITK.WriteImage(read(path) * 0, str(path))
    cases = {case.key: case for case in read_cases(dataset, labelled=1).section()}
    store = make_store(tmp_path)
    (record,) = register_pairs([(cases["a"], cases["b"])], store)
    assert not record["success"]
    assert "one intensity only" in record["reason"]
    assert store.transform(cases["a"], cases["b"]) is None
    with pytest.raises(UserError, match=r"none of the 1 volumes .* registration"):
        propagate_labels(store, tmp_path / "labels", targets=[cases["b"]], candidates=[cases["a"]])


def test_cases__budget_and_sections(dataset):
    data = read_cases(dataset, labelled=1)
    assert [case.labelled for case in data.section()] == [True, False, False, False]
    assert [case.key for case in data.section("test")] == ["e"]
    with pytest.raises(UserError, match="no labelled training volume"):
        read_cases(dataset, labelled=0).candidates()


def _twice(value):
    return 2 * value


@pytest.mark.slow
def test_parallel__processes_and_a_dask_cluster_give_the_same_in_order():
    assert list(run_parallel(_twice, range(5), jobs=2)) == [0, 2, 4, 6, 8]
    distributed = pytest.importorskip("distributed", reason="the extra `registration` (Dask)")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        found = list(run_parallel(_twice, range(5), scheduler=cluster.scheduler_address))
    assert found == [0, 2, 4, 6, 8]


def test_parallel__wrong_input():
    with pytest.raises(UserError, match="jobs is 0"):
        list(run_parallel(_twice, [1], jobs=0))
    pytest.importorskip("distributed", reason="the extra `registration` (Dask)")
    with pytest.raises(UserError, match="no Dask scheduler answers at nonsense"):
        list(run_parallel(_twice, [1], scheduler="nonsense://1.2.3.4:1"))
