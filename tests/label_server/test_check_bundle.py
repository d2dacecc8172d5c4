"""What keeps a bundle out of the label server is found and named before the server starts."""

import importlib
import json
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

SCRIPTS = Path(__file__).parents[2] / "scripts"
PIPELINES = "medseg_kit.transforms.pipelines"
INFERENCE = {
    "device": "cpu",
    "network_def": {
        "_target_": "torch.nn.Conv3d",
        "in_channels": 1,
        "out_channels": 3,
        "kernel_size": 1,
    },
    "preprocessing": {"_target_": f"{PIPELINES}.volume_preprocessing", "keys": ["image"]},
    "postprocessing": {
        "_target_": f"{PIPELINES}.volume_postprocessing",
        "preprocessing": "@preprocessing",
    },
    "inferer": {"_target_": "SimpleInferer"},
}
TRAIN = {
    "bundle_root": ".",
    "device": "cpu",
    "network": "$None",
    "run": [],
    "train": {"trainer": {"max_epochs": 1}, "dataset": {"data": []}, "handlers": [{"a": 1}]},
    "validate": {"dataset": {"data": []}},
}


@pytest.fixture
def check_bundle(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS / "label_server")
    return importlib.import_module("check_bundle")


@pytest.fixture
def start(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS / "label_server")
    return importlib.import_module("start")


@pytest.fixture
def bundle(tmp_path):
    root = tmp_path / "bundles" / "toy_ct_net"
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    write_metadata(root)
    write_config(root, "inference", INFERENCE)
    write_config(root, "train", TRAIN)
    torch.save(torch.nn.Conv3d(1, 3, 1).state_dict(), root / "models" / "model.pt")
    return root


def write_config(root, stem, content):
    (root / "configs" / f"{stem}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def write_metadata(root, *, image="image", pred="pred", shape=(8, 8, 8), labels=None):
    labels = {"0": "background", "1": "liver"} if labels is None else labels
    formats = {
        "inputs": {image: {"spatial_shape": list(shape)}},
        "outputs": {pred: {"channel_def": labels}},
    }
    (root / "configs" / "metadata.json").write_text(
        json.dumps({"version": "0.1.0", "network_data_format": formats})
    )


def test_check_inference__good_bundle_passes(check_bundle, bundle):
    check_bundle.check_inference(bundle)
    assert check_bundle.training_problems(bundle) == []


def test_check_inference__reserved_name(check_bundle, bundle):
    renamed = bundle.rename(bundle.with_name("liver_detection"))
    with pytest.raises(check_bundle.BundleError, match=r"'detection'.*rename"):
        check_bundle.check_inference(renamed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "scan"}, "first input must be 'image'"),
        ({"pred": "mask"}, "first output 'pred'"),
        ({"shape": ()}, "spatial_shape"),
        ({"labels": {"1": "liver"}}, "label values 0, 1"),
        ({"labels": {"0": "liver"}}, "start with background"),
        ({"labels": {"0": "background", "1": "liver", "2": "Liver"}}, "repeat no name"),
    ],
)
def test_check_inference__metadata(check_bundle, bundle, changes, message):
    write_metadata(bundle, **changes)
    with pytest.raises(check_bundle.BundleError, match=rf"metadata\.json.*{message}"):
        check_bundle.check_inference(bundle)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("network_def", "$None", "written out in full"),
        ("network_def", {"_target_": "nowhere.Net"}, "network_def cannot be built"),
        ("preprocessing", {"_target_": "SimpleInferer"}, "preprocessing must be a Compose"),
        ("preprocessing", None, "preprocessing is missing"),
        ("postprocessing", {"_target_": "Compose", "transforms": []}, "needs Invertd"),
        ("inferer", {"_target_": "SlidingWindowInferer", "nonsense": 1}, "inferer cannot be built"),
    ],
)
def test_check_inference__configuration(check_bundle, bundle, part, value, message):
    write_config(bundle, "inference", {**INFERENCE, part: value})
    with pytest.raises(check_bundle.BundleError, match=rf"inference\.yaml: .*{message}"):
        check_bundle.check_inference(bundle)


def test_check_inference__unreadable_configuration(check_bundle, bundle):
    (bundle / "configs" / "inference.yaml").write_text("a: [1")
    with pytest.raises(check_bundle.BundleError, match=r"inference\.yaml cannot be read"):
        check_bundle.check_inference(bundle)


def test_check_inference__weights_that_do_not_fit(check_bundle, bundle):
    torch.save(torch.nn.Conv3d(1, 2, 1).state_dict(), bundle / "models" / "model.pt")
    with pytest.raises(check_bundle.BundleError, match=r"model\.pt does not fit network_def"):
        check_bundle.check_inference(bundle)


def test_check_inference__state_dict_under_another_key(check_bundle, bundle):
    # MONAI Label would serve random weights without a word.
    state = torch.nn.Conv3d(1, 3, 1).state_dict()
    torch.save({"state_dict": state}, bundle / "models" / "model.pt")
    with pytest.raises(check_bundle.BundleError, match=r"model\.pt does not fit network_def"):
        check_bundle.check_inference(bundle)


def test_check_inference__shorter_weights_file(check_bundle, bundle):
    (bundle / "models" / "m.pt").touch()
    with pytest.raises(check_bundle.BundleError, match=r"m\.pt instead of model\.pt"):
        check_bundle.check_inference(bundle)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("validate", {}, "validate#dataset#data is missing"),
        ("train", {**TRAIN["train"], "handlers": ["@x"]}, "train#handlers"),
        ("train", {**TRAIN["train"], "handlers": "@handlers"}, "train#handlers"),
    ],
)
def test_training_problems__names_the_id(check_bundle, bundle, name, value, message):
    write_config(bundle, "train", {**TRAIN, name: value})
    (problem,) = check_bundle.training_problems(bundle)
    assert message in problem


def test_training_problems__no_configuration(check_bundle, bundle):
    (bundle / "configs" / "train.yaml").unlink()
    assert check_bundle.training_problems(bundle) == ["configs/train.yaml is missing"]


def test_add_bundles__leaves_out_the_bad_one(start, bundle, tmp_path, capsys):
    bad = bundle.with_name("bad_ct_net")
    (bad / "configs").mkdir(parents=True)
    write_metadata(bad)
    (tmp_path / "app" / "model").mkdir(parents=True)
    assert start.add_bundles([str(bad), str(bundle)], tmp_path / "app") == ["toy_ct_net"]
    assert "left out bad_ct_net: models/model.pt is missing" in capsys.readouterr().err


def test_add_bundles__no_good_bundle_is_an_error(start, bundle, tmp_path):
    (bundle / "models" / "model.pt").unlink()
    (tmp_path / "app" / "model").mkdir(parents=True)
    with pytest.raises(ValueError, match="no bundle can be served"):
        start.add_bundles([str(bundle)], tmp_path / "app")


def test_add_bundles__same_name_twice_is_an_error(start, bundle, tmp_path):
    with pytest.raises(ValueError, match="'toy_ct_net' is given twice"):
        start.add_bundles([str(bundle), str(bundle)], tmp_path / "app")


def test_add_bundle__takes_new_configurations_and_drops_old_files(start, bundle, tmp_path):
    copy = tmp_path / "model" / bundle.name
    assert start.add_bundle(bundle, copy)
    (copy / "configs" / "monailabel_train.json").touch()
    write_metadata(bundle, labels={"0": "background", "1": "kidneys"})
    assert start.add_bundle(bundle, copy)
    assert "kidneys" in (copy / "configs" / "metadata.json").read_text()
    assert not (copy / "configs" / "monailabel_train.json").exists()


def test_copy_weights__keeps_what_was_trained_on_the_server(start, bundle, tmp_path, capsys):
    source, target = bundle / "models", tmp_path / "copy" / "models"
    target.parent.mkdir()
    start.copy_weights(source, target)
    (target / "model.pt").write_bytes(b"trained on the server")
    start.copy_weights(source, target)
    assert capsys.readouterr().err == ""
    (source / "model.pt").write_bytes(b"new release")
    start.copy_weights(source, target)
    assert (target / "model.pt").read_bytes() == b"trained on the server"
    assert "keeping the weights trained on this server" in capsys.readouterr().err


def test_copy_weights__untouched_copy_follows_the_bundle(start, bundle, tmp_path):
    source, target = bundle / "models", tmp_path / "copy" / "models"
    target.parent.mkdir()
    start.copy_weights(source, target)
    (source / "model.pt").write_bytes(b"new release")
    start.copy_weights(source, target)
    assert (target / "model.pt").read_bytes() == b"new release"


def test_add_bundle__prototypes_of_a_support_scan(start, bundle, tmp_path, capsys):
    write_config(bundle, "inference", {**INFERENCE, "support_source": {"_target_": "object"}})
    prototypes, copy = bundle / "models" / start.PROTOTYPES, tmp_path / "model" / bundle.name
    assert start.add_bundle(bundle, copy)
    assert f"medseg support toy_ct_net --image SCAN --label LABEL --out {prototypes}" in (
        capsys.readouterr().err
    )
    prototypes.write_bytes(b"prototypes")
    assert start.add_bundle(bundle, copy)
    assert (copy / "models" / start.PROTOTYPES).read_bytes() == b"prototypes"
    assert "medseg support" not in capsys.readouterr().err
    prototypes.unlink()
    assert start.add_bundle(bundle, copy)
    assert not (copy / "models" / start.PROTOTYPES).exists()


def test_make_studies__missing_folder_names_it(start, tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        start.make_studies(str(tmp_path / "nowhere"), tmp_path)


def test_check_port__taken_port_names_the_option(start):
    with start.socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="--port"):
            start.check_port(taken.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prt", "3"], "unknown option --prt"),
        (["--port"], "--port needs a value"),
    ],
)
def test_script__wrong_options_are_errors(arguments, message):
    done = run_script(arguments)
    assert done.returncode == 1
    assert message in done.stderr


def test_script__refuses_to_replace_a_folder_that_is_no_environment(tmp_path):
    (tmp_path / "thesis.txt").touch()
    done = run_script(["--setup-only"], MEDSEG_LABEL_VENV=str(tmp_path))
    assert done.returncode == 1
    assert "not a virtual environment" in done.stderr
    assert (tmp_path / "thesis.txt").is_file()


def test_script__missing_python_names_the_variable(tmp_path):
    folder = str(tmp_path / "venv")
    done = run_script(["--setup-only"], MEDSEG_LABEL_VENV=folder, PYTHON="no-such-python")
    assert done.returncode == 1
    assert "PYTHON=" in done.stderr


def run_script(arguments, **environment):
    return subprocess.run(
        [SCRIPTS / "label_server.sh", *arguments],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
