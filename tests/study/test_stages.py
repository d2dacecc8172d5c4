import pytest
import torch
from monai.bundle import ConfigParser

from medseg_kit.study.spec import Job, RunSpec
from medseg_kit.study.stages import chosen_weights, existing_weights
from medseg_kit.typing import UserError


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
