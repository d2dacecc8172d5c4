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
    parts_of,
    predict,
)
from medseg_kit.typing import UserError
from tests.study.conftest import write_datalist


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
