"""Offline verification finds each kind of mistake, and nothing in a sound bundle."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from medseg_kit.bundle.new import write_bundle
from medseg_kit.bundle.verify import readiness, verify_bundle
from medseg_kit.cli.bundle import verify
from medseg_kit.typing import UserError


def problems(root) -> str:
    return "\n".join(text for found in verify_bundle(root).values() for text in found)


def edit_yaml(root, name, **changes):
    path = root / "configs" / name
    content = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        if value is None:
            del content[key]
        else:
            content[key] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def edit_metadata(root, **changes):
    path = root / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_verify__sound_bundle(sound_bundle, capsys):
    assert problems(sound_bundle) == ""
    assert readiness(sound_bundle) is None
    assert verify(str(sound_bundle)) == 0
    assert "no problem found" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["LICENSE", "docs/data_license.txt", "models/model.pt"])
def test_verify__missing_file(sound_bundle, name):
    (sound_bundle / name).unlink()
    assert f"{name}: missing" in problems(sound_bundle)
    assert verify(str(sound_bundle)) == 1


def test_verify__untrained_bundle_says_so(sound_bundle):
    (sound_bundle / "models" / "model.pt").unlink()
    edit_metadata(sound_bundle, trained_weights=False)
    assert problems(sound_bundle) == ""
    assert "no trained weights" in readiness(sound_bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "0.2.0"}, "not in the changelog"),
        ({"authors": 3}, "authors: 3 is not of type 'string'"),
        ({"network_data_format": {}}, "'inputs' is a required property"),
    ],
)
def test_verify__metadata(sound_bundle, changes, message):
    edit_metadata(sound_bundle, **changes)
    assert message in problems(sound_bundle)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"0": "background", "1": "liver"}, "differ from the organs"),
        ({"0": "blob", "1": "background"}, "not background"),
        ({"0": "background", "2": "blob"}, "must count"),
        ({"0": "background", "1": "Blob"}, "lower case"),
        ({"0": "background"}, "2 channels but 1 names"),
    ],
)
def test_verify__channels(sound_bundle, channels, message):
    formats = json.loads((sound_bundle / "configs" / "metadata.json").read_text())
    formats["network_data_format"]["outputs"]["pred"]["channel_def"] = channels
    edit_metadata(sound_bundle, **formats)
    assert message in problems(sound_bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network_def": "$None"}, "literal mapping"),
        ({"inferer": None}, "id inferer (property inferer) is missing"),
        ({"note": "$@device.type"}, "pass"),
        ({"note": "@_meta_#version"}, "metadata"),
        ({"preprocessing": {"_target_": "Flip"}}, "preprocessing makes Flip, no Compose"),
        ({"dataset": {"_target_": "Dataset", "data": [], "transform": "@other"}}, "must be"),
    ],
)
def test_verify__inference(sound_bundle, changes, message):
    if "note" not in changes:
        edit_yaml(sound_bundle, "inference.yaml", **changes)
    else:
        edit_yaml(sound_bundle, "inference.yaml", inferer={"_target_": "SimpleInferer", **changes})
    assert message in problems(sound_bundle)


def test_verify__training_needs_literals(sound_bundle):
    train = yaml.safe_load((sound_bundle / "configs" / "train.yaml").read_text())["train"]
    train["trainer"]["max_epochs"] = "@epochs"
    train["handlers"] = ["@handler"]
    edit_yaml(sound_bundle, "train.yaml", train=train)
    assert "max_epochs must be a literal number" in problems(sound_bundle)
    assert "train#handlers must be a literal list" in problems(sound_bundle)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"_target_": "DiceLoss", "to_one_hot_y": True}, "takes no argument to_one_hot_y"),
        ({"_target_": "DiceLoss", "softmx": True}, "(did you mean softmax?)"),
        ({"_target_": "torch.nn.Dice"}, "_target_ torch.nn.Dice does not exist"),
        (
            {"_target_": "medseg_kit.methods.cps.CrossPseudoSupervisionStep", "toal_steps": 3},
            "takes no argument toal_steps (did you mean total_steps?)",
        ),
        ({"_target_": "medseg_kit.engines.schedules.linear", "start": 0}, "needs the argument end"),
    ],
)
def test_verify__components_of_an_overlay(sound_bundle, loss, message):
    folder = sound_bundle / "configs" / "methods"
    folder.mkdir()
    (folder / "other.yaml").write_text(yaml.safe_dump({"train::loss": loss}))
    found = problems(sound_bundle)
    assert "train.yaml + methods/other.yaml: train::loss" in found
    assert message in found


def test_verify__overlay_with_list_position(sound_bundle):
    edit_yaml(sound_bundle, "evaluate.yaml", **{"train::handlers::0::interval": 1})
    assert "addresses a list position" in problems(sound_bundle)


def test_verify__code_and_names(sound_bundle):
    (sound_bundle / "configs" / "helper.py").write_text("")
    (sound_bundle / "models" / "m.pt").write_bytes(b"")
    assert "helper.py: a bundle is configuration only" in problems(sound_bundle)
    assert "models/m.pt: MONAI Label would load it" in problems(sound_bundle)
    renamed = sound_bundle.rename(sound_bundle.parent / "toy_mr_detection")
    assert "'detection'" in problems(renamed)


def test_verify__network_and_metadata_disagree(sound_bundle):
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3}
    edit_yaml(sound_bundle, "inference.yaml", network_def={**network, "kernel_size": 1})
    found = problems(sound_bundle)
    assert "output channel number `3` doesn't match" in found
    assert "2 of another shape (bias, weight)" in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"weight": torch.zeros(1)}}, "state_dict is no tensor"),
        ({"weight": torch.zeros(1)}, "1 missing (bias)"),
        ({"weight": torch.full((2, 1, 1, 1, 1), torch.nan), "bias": torch.zeros(2)}, "not finite"),
        (torch.nn.Conv3d(1, 2, 1), "weights-only"),
    ],
)
def test_verify__weights(sound_bundle, content, message):
    torch.save(content, sound_bundle / "models" / "model.pt")
    assert message in problems(sound_bundle)


def test_new__skeleton_verifies_with_temporary_weights(sound_bundle, tmp_path):
    root = write_bundle("other_ct_net", ["kidney"], like=sound_bundle, folder=tmp_path)
    assert problems(root) == ""
    torch.save(torch.nn.Conv3d(1, 2, 1).state_dict(), root / "models" / "model.pt")
    edit_metadata(root, trained_weights=True)
    assert problems(root) == ""
    assert "toy_mr_net" not in (root / "configs" / "train.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "organs", "message"),
    [
        ("Bad", ["liver"], "lower case"),
        ("a_ct_b", [], "name each once"),
        ("a_ct_b", ["liver", "liver"], "name each once"),
        ("toy_mr_net", ["liver"], "exists already"),
    ],
)
def test_new__wrong_input(sound_bundle, name, organs, message):
    with pytest.raises(UserError, match=message):
        write_bundle(name, organs, like=sound_bundle, folder=sound_bundle.parent)
