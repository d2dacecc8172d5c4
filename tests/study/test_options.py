import json

import pytest
import torch

from medseg_kit.bundle.config import load_config
from medseg_kit.bundle.options import describe_components, options_of
from medseg_kit.engines.schedules import poly
from medseg_kit.fl.plan import Options
from medseg_kit.losses.soft_dice import DiceCrossEntropy
from medseg_kit.methods.cross_teaching import CrossTeachingStep
from medseg_kit.methods.mcsc import BalancedContrast
from medseg_kit.study.options import describe_federation


def test_options__defaults_terms_and_schedules_by_name():
    step = CrossTeachingStep(
        supervised_loss=DiceCrossEntropy(),
        total_steps=9,
        lr_schedule=poly(),
        terms=[BalancedContrast(patches={"full": 11})],
    )
    options = options_of(step)
    assert options["type"] == "medseg_kit.methods.cross_teaching.CrossTeachingStep"
    assert (options["total_steps"], options["amp"], options["teacher"]) == (9, "off", None)
    assert options["lr_schedule"]["power"] == 0.9
    assert options["terms"][0]["patches"] == {"full": 11}
    assert options["terms"][0]["crossed"] is True
    assert "global_step" not in options
    json.dumps(options, allow_nan=False)


def test_options__parts_of_other_libraries_are_named():
    assert options_of(torch.nn.Linear(2, 1)) == {"type": "torch.nn.modules.linear.Linear"}


def test_options__numbers_that_json_does_not_have():
    assert options_of([float("inf"), 1.5]) == ["inf", 1.5]


@pytest.mark.parametrize("name", ["hippocampus_mr_segviz", "abdomen_ct_segviz", "cardiac_mr_mcsc"])
def test_describe_components__what_depends_on_the_data_stands_by_its_value(
    repository, dataset, name
):
    folder, _ = dataset
    published = ["methods/published.yaml"] if name == "abdomen_ct_segviz" else []
    organs = {"organs": ["liver", "spleen"]}
    parser = load_config(
        repository / "bundles" / name,
        ["train.yaml", *published],
        overrides={"dataset_dir": str(folder), **organs},
    )
    text = json.dumps(describe_components(parser))
    assert str(folder) not in text
    assert str(repository) not in text
    assert "medseg_kit.networks" in text


def test_describe_components__network_augmentation_and_slices_without_paths(repository):
    parser = load_config(
        repository / "bundles" / "cardiac_mr_csunet",
        ["train.yaml"],
        overrides={"network_def#ffn": "residual", "network_def#dsf": False, "rule": "rotate"},
    )
    found = describe_components(parser)
    network = found["network"]
    assert (network["ffn"], network["layerscale_init"], network["embed_dim"]) == (
        "residual",
        1e-6,
        48,
    )
    assert found["augmentation"]["rule"] == "rotate"
    assert found["slices"]["image_size"] == 128
    assert found["optimizer"]["type"] == "torch.optim.AdamW"
    assert found["settings"]["learning_rate"] == 0.001
    assert (found["settings"]["batch_size"], found["settings"]["amp"]) == (8, "bf16")
    assert str(repository) not in json.dumps(found)


def test_describe_components__pretrained_weights_without_their_place(repository, tmp_path):
    key = "network_def#second#pretrained_path"
    parser = load_config(
        repository / "bundles" / "cardiac_mr_semi_supervised",
        ["train.yaml", "methods/cross_teaching.yaml"],
        overrides={key: str(tmp_path / "swin.pth")},
    )
    assert describe_components(parser)["network"]["second"]["pretrained_path"] == "given"


@pytest.mark.parametrize(
    ("name", "method", "strategy"),
    [
        ("abdomen_multimodal_cowpro", "fused", "fedavg.FedAvg"),
        ("cardiac_mr_semi_supervised", "bcp", "fedavg.FedAvg"),
        ("hippocampus_mr_segviz", None, "selective.SelectiveSync"),
    ],
)
def test_describe_federation__step_network_and_averaging(
    repository, dataset, name, method, strategy
):
    folder, _ = dataset
    (folder / "site.yaml").write_text("overrides: {seed: 3}")
    options = Options(rounds=7, method=method)
    found = describe_federation(str(repository / "bundles" / name), folder, options)
    assert found["strategy"]["type"].endswith(strategy)
    assert (found["num_rounds"], found["local_epochs"]) == (7, 1)
    assert "total_steps" not in found
    assert found["type"].startswith("medseg_kit.methods.")
    assert found["network"]["type"].startswith("medseg_kit.networks.")
    text = json.dumps(found, allow_nan=False)
    assert str(folder) not in text
    assert str(repository) not in text
    if method == "fused":
        assert (found["spatial_weight"], found["edge_weight"]) != (0.0, 0.0)
    if name == "hippocampus_mr_segviz":
        assert found["network"]["heads"] == ["anterior", "posterior"]  # not this site's organs
