"""One-shot bundles: what MONAI Label loads, and a client that has nothing but its support."""

from __future__ import annotations

import shutil

import pytest
import torch

from medseg_kit.bundle.config import load_config
from medseg_kit.cli.superpixels import superpixels
from medseg_kit.data.datalist import load_datalist
from medseg_kit.data.phantom_anatomy import PELVIS
from medseg_kit.data.phantoms import write_phantom_dataset
from medseg_kit.fl.plan import Options, read_plan
from medseg_kit.networks.dilated_resnet import DilatedResNet
from medseg_kit.typing import UserError
from tests.methods.slice_training import train

NAME = "pelvis_mr_cowpro"


@pytest.fixture
def bundle(repository, tmp_path):
    """Return a copy of the bundle with the weights that training starts from."""
    root = tmp_path / NAME
    shutil.copytree(repository / "bundles" / NAME, root)
    (root / "models").mkdir(exist_ok=True)
    network = load_config(root).get_parsed_content("network_def")
    torch.save(network.state_dict(), root / "models" / "model.pt")
    return root


def test_bundle_without_prototypes__loads_and_says_what_it_needs(bundle):
    parser = load_config(bundle, overrides={"dataset_dir": str(bundle)})
    network = parser.get_parsed_content("network_def").eval()
    with pytest.raises(UserError, match="medseg support BUNDLE"):
        parser.get_parsed_content("inferer")(torch.zeros(1, 1, 16, 16, 4), network)


def test_client_with_one_scan__has_nothing_to_train_on(repository, tmp_path):
    organs = load_config(repository / "bundles" / NAME).get_parsed_content("organs")
    data = write_phantom_dataset(
        tmp_path / "client",
        organs=organs,
        counts={"support": 1},
        size=(16, 16, 8),
        anatomy=PELVIS,
    )
    with pytest.raises(UserError, match=r"no training cases; filled are support \(1\)"):
        load_datalist(data, "training", organs=organs)


def test_evaluation__of_a_data_set_that_was_never_trained_on(bundle, tmp_path):
    """A support scan and queries, but no training scan and no training label."""
    organs = load_config(bundle).get_parsed_content("organs")
    counts = {"support": 1, "test": 1}
    data = write_phantom_dataset(
        tmp_path / "other", organs=organs, counts=counts, size=(32, 32, 12), anatomy=PELVIS
    )
    overrides = {"dataset_dir": str(data), "output_dir": str(tmp_path), "image_size": 32}
    parser = load_config(bundle, ["train.yaml", "evaluate.yaml"], overrides=overrides)
    evaluator = parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    assert 0 <= evaluator.state.metrics["val_mean_dice"] <= 1


def test_superpixels__take_the_settings_of_the_site(repository, tmp_path, capsys):
    bundle = repository / "bundles" / NAME
    organs = load_config(bundle).get_parsed_content("organs")
    data = write_phantom_dataset(
        tmp_path / "site", organs=organs, counts={"training": 1}, size=(32, 32, 12), anatomy=PELVIS
    )

    def made(*values):
        superpixels(str(bundle), data=str(data), set=["image_size=32", *values], jobs=1)
        return capsys.readouterr().out.split()[-1]

    usual, other = made(), made("mr_body=9.5")
    (data / "site.yaml").write_text("overrides: {mr_body: 9.5}\n")
    assert usual != other == made()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("method", ["fused", "fedprox", "fused,fedprox", "fedbn", "uncapped"])
def test_overlay__trains(repository, method):
    overlays = [f"methods/{name}.yaml" for name in method.split(",")]
    small = {"device": "cpu", "amp": "off", "encoder#widen_factor": 0.125, "total_steps": 2}
    files = ["train.yaml", "federated.yaml", *overlays]
    parser = load_config(repository / "bundles" / NAME, files, overrides=small)
    step, model = (parser.get_parsed_content(key) for key in ("train#step", "model"))
    step.on_round_start({key: value.clone() for key, value in model.state_dict().items()})
    image = torch.rand(2, 1, 64, 64)
    label = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    label[:, :, 16:48, 16:48] = 1
    batches = [{"image": image + label, "label": label}] * 2
    optimizer = parser.get_parsed_content("optimizer")
    losses = train(step, model, batches, optimizer=optimizer)[1]
    assert all(value == value and value >= 0 for value in losses.values())
    expected = {"query", "alignment"} | ({"spatial", "edge"} if "fused" in method else set())
    assert set(losses) == expected | ({"proximal"} if "fedprox" in method else set())
    assert parser["max_steps"] == (None if method == "uncapped" else 1000)


def test_ledger__names_the_weights_that_the_encoder_starts_from(repository, tmp_path):
    small = {"encoder#widen_factor": 1.0, "device": "cpu"}
    bundle = repository / "bundles" / NAME
    assert read_plan(bundle, Options(overrides=small)).initial_weights == "random"
    torch.save(DilatedResNet(18).backbone.state_dict(), tmp_path / "resnet.pth")
    small["encoder#pretrained_path"] = str(tmp_path / "resnet.pth")
    assert read_plan(bundle, Options(overrides=small)).initial_weights.startswith("sha256:")


@pytest.mark.parametrize("overlay", ["untrained", "mask_copy", "published_inference"])
def test_overlay__answers_for_every_organ(repository, overlay):
    files = ["inference.yaml", f"methods/{overlay}.yaml"]
    small = {} if overlay == "mask_copy" else {"encoder#widen_factor": 0.125}
    parser = load_config(repository / "bundles" / NAME, files, overrides=small)
    assert (parser["checkpoint"] is None) == (overlay != "published_inference")
    network = parser.get_parsed_content("network_def").eval()
    with torch.no_grad():
        logits = network(torch.rand(1, 1, 32, 32))
    assert logits.shape == (1, 1 + len(parser["organs"]), 32, 32)


@pytest.mark.parametrize(
    ("method", "cap", "weight"),
    [
        ("published", 1000, 0.0),
        ("published_fused", 1000, 1.0),
        ("published_uncapped", None, 0.0),
        ("published_fused_uncapped", None, 1.0),
    ],
)
@pytest.mark.parametrize("name", ["abdomen_multimodal_cowpro", "pelvis_mr_cowpro"])
def test_published__is_the_papers_federation(repository, name, method, cap, weight):
    """100 rounds of one local epoch, SGD 1e-3 x 0.96 a round, batch 1."""
    files = ["train.yaml", "federated.yaml", f"methods/{method}.yaml"]
    config = load_config(repository / "bundles" / name, files).get()
    assert (config["num_rounds"], config["local_epochs"], config["batch_size"]) == (100, 1, 1)
    assert config["max_steps"] == cap
    assert (config["spatial_weight"], config["edge_weight"]) == (weight, weight)
    assert config["learning_rate"] == 0.001
    optimizer = config["optimizer"]
    assert optimizer["_target_"] == "torch.optim.SGD"
    assert (optimizer["momentum"], optimizer["weight_decay"]) == (0.9, 0.0005)
    assert config["train"]["lr_schedule"]["gamma"] == 0.96
    assert config["encoder"]["depth"] == 101
    assert config["client_state"] == "reset"
