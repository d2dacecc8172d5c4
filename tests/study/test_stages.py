import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser

from medseg_kit.study.spec import Job, RunSpec
from medseg_kit.study.stages import (
    chosen_weights,
    existing_weights,
    federate,
    parts_of,
    predict,
    train,
)
from medseg_kit.typing import UserError
from tests.study.conftest import write_datalist


@pytest.fixture
def training(dataset):
    """The data set with its three patients for training."""
    folder, _ = dataset
    cases = json.loads((folder / "datalist.json").read_text())["test"]
    write_datalist(folder, training=cases, test=[])
    return folder


def trained(**parts):
    return ConfigParser(
        {name: "$" + code for name, code in parts.items()}, globals={"torch": "torch"}
    )


def test_chosen_weights__the_last_ones_are_those_that_deploy(tmp_path):
    two = "torch.nn.ModuleDict({'first': torch.nn.Linear(2, 1), 'second': torch.nn.Linear(2, 1)})"
    parser = trained(network=two, deployed="@network['first']")
    last = torch.load(chosen_weights(parser, tmp_path, "last"), weights_only=True)
    assert sorted(last) == ["bias", "weight"]
    expected = parser.get_parsed_content("network")["first"].weight
    assert torch.equal(last["weight"], expected)
    whole = torch.load(chosen_weights(trained(network=two), tmp_path, "last"), weights_only=True)
    assert len(whole) == 4


@pytest.mark.parametrize(
    ("order", "budget", "expected"),
    [("listed", 3, 3), ("listed", 0, 0), ("listed", None, "all"), ("seeded", 2, ["p2", "p0"])],
)
def test_train__a_bundle_with_a_budget_of_its_own_keeps_all_images(
    training, monkeypatch, order, budget, expected
):
    seen = {}

    def load(bundle, files, overrides=None):
        if overrides is not None:
            seen.update(overrides)
            raise InterruptedError
        return {"labelled": None}

    monkeypatch.setattr("medseg_kit.bundle.config.load_config", load)
    spec = RunSpec("mcsc", "train", bundle="b", data=str(training))
    with pytest.raises(InterruptedError):
        train(Job(spec, 0, budget, order), training / "out", checkpoint_rule="last")
    assert seen["dataset_dir"] == str(training)
    assert seen["labelled"] == expected


def test_federate__budgets_keep_unlabelled_images_and_sites_without_labels(
    repository, training, tmp_path, monkeypatch
):
    sites = tmp_path / "sites"
    shutil.copytree(training, sites / "some")
    shutil.copytree(training, sites / "none")
    cases = json.loads((training / "datalist.json").read_text())["training"]
    bare = [{key: case[key] for key in ("image", "subject")} for case in cases]
    write_datalist(sites / "none", training=bare)
    seen = {}

    def simulate(bundle, folders, out, *, options):
        seen.update(folders)
        raise InterruptedError

    monkeypatch.setattr("medseg_kit.fl.simulation.simulate", simulate)
    bundle = str(repository / "bundles" / "cardiac_mr_mcsc")
    job = Job(RunSpec("mcsc", "federate", bundle=bundle, sites=str(sites)), 0, 1)
    with pytest.raises(InterruptedError):
        federate(job, tmp_path / "run", checkpoint_rule="last")
    assert seen["none"] == sites / "none"
    limited = json.loads((seen["some"] / "datalist.json").read_text())["training"]
    assert ["label" in case for case in limited] == [True, False, False]


def test_chosen_weights__missing_best_ones_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"training left no .*model\.pt"):
        chosen_weights(trained(network="torch.nn.Linear(1, 1)"), tmp_path, "best_validation")


def test_existing_weights__a_floor_has_none(repository):
    bundle = str(repository / "bundles" / "abdomen_multimodal_cowpro")
    overlay = {"overlays": ["methods/untrained.yaml"]}
    floor = RunSpec("untrained", "evaluate", bundle=bundle, inference=overlay)
    assert existing_weights(Job(floor, seed=0, label_budget=None))["weights"] is None
    shipped = RunSpec("shipped", "evaluate", bundle=bundle)
    weights = existing_weights(Job(shipped, seed=0, label_budget=None))["weights"]
    assert weights == str(repository / "bundles/abdomen_multimodal_cowpro/models/model.pt")


@pytest.mark.parametrize("support", [None, "chosen.pt"])
def test_predict__a_one_shot_bundle_uses_each_sites_own_support(dataset, monkeypatch, support):
    folder, _ = dataset
    cases = json.loads((folder / "datalist.json").read_text())["test"]
    for site in ("north", "south"):
        (folder / "sites" / site).mkdir(parents=True)
        shutil.copy(folder / "datalist.json", folder / "sites" / site)
        own = [case for case in cases if case["site"] == site]
        write_datalist(folder / "sites" / site, test=own)
    seen = []

    def load(bundle, files, overrides=None):
        parser = ConfigParser({"support": support, **(overrides or {})})
        parser["predictor"] = SimpleNamespace(predict=lambda: seen.append(parser["dataset_dir"]))
        return parser

    monkeypatch.setattr("medseg_kit.bundle.config.load_config", load)
    job = Job(RunSpec("one", "evaluate", bundle="b"), seed=0, label_budget=None)
    test = {"data": str(folder), "section": "test"}
    predict(job, folder / "out", weights=None, test=test)
    parts = [str(folder / "sites" / site) for site in ("north", "south")]
    assert seen == (parts if support is None else [str(folder)])

    write_datalist(folder / "sites" / "south", test=[])  # one case would be left out
    assert parts_of(test) == [str(folder)]
