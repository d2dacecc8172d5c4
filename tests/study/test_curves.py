"""Curves of a training, on small volumes of noise."""

import json

import pytest
import torch

from medseg_kit.data.datalist import load_datalist
from medseg_kit.data.slices import SliceDataset
from medseg_kit.study import stages
from medseg_kit.study.curves import Curves, hidden_slices
from medseg_kit.study.labels import limit_labels
from medseg_kit.study.spec import Job, RunSpec
from tests.data.slice_cases import write_case
from tests.study.conftest import write_datalist

ORGANS = ["liver", "spleen"]


@pytest.fixture
def slices(tmp_path):
    """Four training patients of 4 slices with labels."""
    folder = tmp_path / "slices"
    cases = [write_case(folder, f"p{index}", seed=index) for index in range(4)]
    entries = [
        {key: case[key].removeprefix(f"{folder}/") for key in ("image", "label")}
        | {"subject": case["subject"]}
        for case in cases
    ]
    write_datalist(folder, training=entries)
    return folder


def dataset_of(folder, **options):
    cases = load_datalist(folder, "training", organs=ORGANS)
    return SliceDataset(cases, image_size=16, num_classes=3, **options)


def test_curves__continue_after_a_stop(tmp_path):
    first = Curves(tmp_path / "curves.json")
    for epoch in (1, 2, 3):
        first.add("validation", {"dice": epoch / 10}, epoch=epoch)
    again = Curves(tmp_path / "curves.json")
    again.add("validation", {"dice": 0.5}, epoch=2)  # stopped after the checkpoint of epoch 1
    (curve,) = again.outcome()["curves"]
    assert 0 < again.seconds_before < 10  # what the first process spent, for the cost of the run
    assert curve == {"panel": "validation", "series": "dice", "points": [[1.0, 0.1], [2.0, 0.5]]}


def test_hidden_slices__unlabelled_ones_with_their_labels(slices):
    dataset = dataset_of(slices, labelled=1)
    hidden = hidden_slices(dataset, slices, count=5)
    assert hidden.images.shape == (5, 1, 16, 16)
    assert bool(hidden.labels.any())
    assert not bool(dataset.batch((~dataset.labelled).nonzero()[:, 0])["label"].any())
    again = hidden_slices(dataset_of(slices, labelled=1), slices, count=5)
    assert torch.equal(hidden.images, again.images)
    assert len(hidden_slices(dataset, slices).images) == 12
    assert hidden_slices(dataset_of(slices, labelled="all"), slices) is None


def test_hidden_slices__a_view_without_labels_gives_the_same(slices, tmp_path):
    view = limit_labels(slices, tmp_path / "view", num_subjects=1, keep_unlabelled=True)
    hidden = hidden_slices(dataset_of(view), slices)
    expected = hidden_slices(dataset_of(slices, labelled=1), slices)
    assert torch.equal(hidden.images, expected.images)
    assert torch.equal(hidden.labels, expected.labels)
    assert hidden_slices(dataset_of(view), view) is None  # nobody knows the labels


@pytest.mark.slow
@pytest.mark.integration
def test_train__weights_are_the_same_with_and_without_the_recording(
    repository, slices, tmp_path, monkeypatch
):
    organs = ["right ventricle", "myocardium", "left ventricle"]
    write_datalist(slices, labels=dict(enumerate(["background", *organs])), annotated=organs)
    content = json.loads((slices / "datalist.json").read_text())
    content["validation"] = [content["training"].pop()]
    write_datalist(slices, **content)
    sizes = {"image_size": 32, "batch_size": 2, "labelled_batch_size": 1, "steps_per_epoch": 2}
    spec = RunSpec(
        name="mean_teacher",
        mode="train",
        bundle=str(repository / "bundles" / "cardiac_mr_semi_supervised"),
        data=str(slices),
        overlays=("methods/mean_teacher.yaml",),
        overrides=sizes | {"train#trainer#max_epochs": 2, "val_interval": 1, "device": "cpu"},
    )
    outcomes = []
    for name in ("with", "without"):
        job = Job(spec, seed=0, label_budget=1)
        outcomes.append(stages.train(job, tmp_path / name, checkpoint_rule="last"))
        monkeypatch.setattr("medseg_kit.study.curves.hidden_slices", lambda *_: None)
    scored, plain = outcomes
    assert [curve["branch"] for curve in scored["pseudo_labels"]] == ["student", "teacher"]
    assert [point[0] for point in scored["pseudo_labels"][0]["points"]] == [1.0, 2.0]
    assert (plain["pseudo_labels"], plain["curves"]) == ([], scored["curves"])
    first, second = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        for name in ("with", "without")
    )
    assert first["step"].pop("method") == second["step"].pop("method")
    for part in ("network", "optimizer", "step"):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)
