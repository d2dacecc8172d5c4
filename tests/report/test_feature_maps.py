import io
import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from medseg_kit.bundle.config import load_config
from medseg_kit.data.volume_slices import VolumeSlices
from medseg_kit.networks.dual import DualNetwork
from medseg_kit.networks.unet2d import UNet2D
from medseg_kit.report.feature_maps import (
    draw_pixels,
    embedded,
    feature_figures,
    principal_components,
)
from tests.data.slice_cases import write_case
from tests.study.conftest import write_datalist

CHANNELS = (4, 8, 8, 8, 8)
ORGANS = ["right ventricle", "myocardium", "left ventricle"]


def test_principal_components__largest_spread_first_fixed_sign():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 3)) * [0.1, 5.0, 1.0] + 7
    points, share = principal_components(features)
    centred = features - features.mean(0)
    np.testing.assert_allclose(points[:, 0], centred[:, 1], atol=0.5)
    np.testing.assert_allclose(points[:, 1], centred[:, 2], atol=0.5)
    assert 0.99 < share <= 1
    np.testing.assert_allclose(principal_components(np.ones((5, 2)))[0], 0, atol=1e-12)


def test_draw_pixels__bounded_by_class_and_slice_and_seeded():
    labels = torch.zeros(2, 20, 20, dtype=torch.uint8)
    labels[0, :3, :3] = 1
    first, second = draw_pixels(labels, seed=0)
    assert (len(first), len(second)) == (100 + 9, 100)
    assert int((labels[0].flatten()[first] == 1).sum()) == 9
    assert torch.equal(first, draw_pixels(labels, seed=0)[0])
    assert not torch.equal(first, draw_pixels(labels, seed=1)[0])


@pytest.mark.parametrize("deploy", ["first", "mean"])
def test_embedded__features_of_what_is_deployed(deploy):
    torch.manual_seed(0)
    first, second = (UNet2D(1, 3, channels=CHANNELS).eval() for _ in range(2))
    images, labels = torch.rand(2, 1, 32, 32), torch.randint(0, 3, (2, 32, 32))
    points, classes, share = embedded(DualNetwork(first, second, deploy=deploy), images, labels)
    alone, _, _ = embedded(first, images, labels)
    assert points.shape == (len(classes), 2) == (600, 2)
    assert 0 < share <= 1
    assert np.allclose(points, alone) == (deploy == "first")


@pytest.fixture
def study(repository, tmp_path):
    """A study's folder with the weights of one run that has done nothing, and its test images."""
    folder = tmp_path / "data"
    entries = [
        {key: f"{key}s/p{index}.nii.gz" for key in ("image", "label")} | {"subject": f"p{index}"}
        for index in range(2)
    ]
    for index in range(2):
        write_case(folder, f"p{index}", seed=index)
    labels = dict(enumerate(["background", *ORGANS]))
    write_datalist(folder, labels=labels, annotated=ORGANS, test=entries)
    bundle = str(repository / "bundles" / "cardiac_mr_semi_supervised")
    inference = {"overrides": {"image_size": 32}}
    record = {
        "run": "supervised",
        "method": "supervised",
        "mode": "train",
        "seed": 0,
        "label_budget": 1,
        "checkpoint_rule": {"stated": "best_validation", "applied": "best_validation"},
        "configuration": {"bundle": bundle, "inference": inference},
        "cases": [{"case": f"p{index}", "dice": index / 2} for index in range(2)],
    }
    weights = tmp_path / "runs" / "supervised_labels1_seed0" / "training" / "model.pt"
    weights.parent.mkdir(parents=True)
    network = load_config(bundle, ["inference.yaml"]).get_parsed_content("network_def")
    torch.save(network.state_dict(), weights)
    return tmp_path, record, {"data": str(folder), "section": "test"}, weights


def test_feature_figures__where_the_weights_still_are(study):
    folder, record, test, weights = study
    figures = feature_figures(folder, [record], test)
    assert list(figures) == ["within", "across"]
    assert imread(io.BytesIO(figures["within"])).shape[2] >= 3
    assert figures == feature_figures(folder, [record], test)
    weights.unlink()
    assert feature_figures(folder, [record], test) == {}
    assert feature_figures(folder, [record], {**test, "data": str(folder / "gone")}) == {}


def test_feature_figures__a_bundle_that_is_gone_is_left_out(study, caplog):
    folder, record, test, _ = study
    record = json.loads(json.dumps(record))
    record["configuration"]["bundle"] = str(folder / "no_bundle")
    assert feature_figures(folder, [record], test) == {}
    assert "no features of supervised" in caplog.text


def test_feature_figures__slices_as_the_network_sees_them(study, monkeypatch):
    folder, record, test, _ = study
    record = json.loads(json.dumps(record))
    record["configuration"]["inference"]["overrides"]["slice_direction"] = "S"
    cut = []

    def slices(*arguments, **options):
        cut.append(options["direction"])
        return VolumeSlices(*arguments, **options)

    monkeypatch.setattr("medseg_kit.report.feature_maps.VolumeSlices", slices)
    feature_figures(folder, [record], test)
    assert cut == ["S"]
