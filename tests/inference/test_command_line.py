"""`medseg predict` and MONAI's command line on a real bundle with temporary weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg_kit.bundle.config import load_config
from medseg_kit.cli.predict import predict
from medseg_kit.typing import UserError

NAME = "hippocampus_mr_segviz"


@pytest.fixture
def bundle(tmp_path, repository):
    """Return a copy of the bundle with random weights."""
    root = tmp_path / "bundles" / NAME
    shutil.copytree(
        repository / "bundles" / NAME, root, ignore=shutil.ignore_patterns("models", "*.pt")
    )
    torch.manual_seed(0)
    network = load_config(root).get_parsed_content("network_def")
    (root / "models").mkdir()
    torch.save(network.state_dict(), root / "models" / "model.pt")
    return root


@pytest.fixture
def images(kit, tmp_path):
    for seed in range(4):
        kit.write_nifti(tmp_path / "in" / f"case{seed}.nii.gz", kit.smooth((20, 18, 16), seed))
    return tmp_path / "in"


def _start(*words, folder, **environment):
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def _finish(process, code=0):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def _same(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.glob("*.nii.gz"))
    assert names
    assert names == sorted(path.name for path in other.glob("*.nii.gz"))
    for name in names:
        first, second = nib.load(one / name), nib.load(other / name)
        np.testing.assert_array_equal(first.affine, second.affine)
        np.testing.assert_array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))


def test_predict__missing_weights_name_the_training_command(bundle, images, tmp_path):
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(UserError, match=r"no trained weights. Train it with: .*train\.yaml"):
        predict(str(bundle), input=str(images), output=str(tmp_path / "out"))


def test_predict__weights_file_that_does_not_exist(bundle, images, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"none\.pt does not exist; give a file"):
        predict(str(bundle), input=str(images), output=out, weights=str(tmp_path / "none.pt"))


def test_predict__weights_file_of_another_kind(bundle, images, tmp_path):
    (tmp_path / "text.pt").write_text("export A=1\n")
    out, weights = str(tmp_path / "out"), str(tmp_path / "text.pt")
    with pytest.raises(SystemExit, match=r"error: .*text\.pt: not a readable weights-only file"):
        predict(str(bundle), input=str(images), output=out, weights=weights, progress=False)


def test_predict__output_that_cannot_be_written(bundle, images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"error: .*file cannot be written .*another output"):
        predict(str(bundle), input=str(images), output=str(tmp_path / "file"), progress=False)


def test_predict__set_changes_the_configuration(bundle, images, tmp_path):
    arguments = {"input": str(images), "output": str(tmp_path / "out"), "progress": False}
    with pytest.raises(UserError, match="unknown override 'network_def::head'"):
        predict(str(bundle), set=["network_def::head=[anterior]"], **arguments)
    with pytest.raises(SystemExit, match=r"[0-9]+ unexpected"):
        predict(str(bundle), set=["network_def::heads=[anterior]"], **arguments)


def test_predict__misspelt_overlay_lists_the_overlays(bundle, images, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"plain\.yaml does not exist; .*plain_network\.yaml"):
        predict(str(bundle), input=str(images), output=out, overlay="plain")


def test_predict__weights_of_another_network(bundle, images, tmp_path):
    path = bundle / "models" / "model.pt"
    state = torch.load(path, weights_only=True)
    state["extra.weight"] = state.pop(next(iter(state)))
    torch.save(state, path)
    with pytest.raises(SystemExit, match=r"error: .*1 missing .*extra\.weight"):
        predict(str(bundle), input=str(images), output=str(tmp_path / "out"), progress=False)


def test_predict__empty_folder(bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"error: .*holds no images"):
        predict(str(bundle), input=str(tmp_path / "empty"), output=str(tmp_path / "out"))


def test_predict__section_of_a_datalist_and_organs(bundle, images, tmp_path):
    content = {"test": [{"image": "case0.nii.gz"}], "training": [{"image": "case1.nii.gz"}]}
    (images / "datalist.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    code = predict(str(bundle), input=str(images), output=str(out), section="test", progress=False)
    assert code == 0
    record = json.loads((out / "case0.json").read_text())
    assert record["labels"] == {"1": "anterior", "2": "posterior"}
    assert not (out / "case1.json").exists()


@pytest.mark.slow
def test_predict__monai_and_medseg_do_the_same_from_anywhere(bundle, images, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = bundle / "configs" / "inference.yaml"
    words = ["-m", "medseg_kit.cli", "predict", str(bundle), "-i", str(images), "-o", "ours"]
    monai = ["-m", "monai.bundle", "run", "--config_file", str(config)]
    monai += ["--dataset_dir", str(images), "--output_dir", "monai"]
    _finish(_start(*words, folder=elsewhere))
    _finish(_start(*monai, folder=elsewhere))
    _same(elsewhere / "ours", elsewhere / "monai")

    (images / "broken.nii.gz").write_bytes(b"broken")
    output = _finish(_start(*words, folder=elsewhere), code=1)
    assert "error: 1 of 5 cases failed: broken" in output
    assert "Traceback" not in output
    output = _finish(_start(*monai, folder=elsewhere), code=1)
    assert "error: 1 of 5 cases failed: broken" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_predict__killed_and_started_again(bundle, images, kit, tmp_path):
    for seed in range(4, 12):
        kit.write_nifti(images / f"case{seed}.nii.gz", kit.smooth((20, 18, 16), seed))
    words = ["-m", "medseg_kit.cli", "predict", str(bundle), "-i", str(images), "-o"]
    process = _start(*words, "killed", folder=tmp_path)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "killed").glob("case*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    _finish(_start(*words, "killed", folder=tmp_path))
    _finish(_start(*words, "whole", folder=tmp_path))

    summary = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert summary["done"] == 12
    assert summary["this_run"]["skipped"] >= 1
    _same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.integration
def test_predict__torchrun_shares_the_cases(bundle, images, tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words += ["-m", "medseg_kit.cli", "predict", str(bundle), "-i", str(images), "-o", "shared"]
    _finish(_start(*words, "--device", "cpu", folder=tmp_path))
    _finish(_start(*words[5:-1], "alone", folder=tmp_path))

    summary = json.loads((tmp_path / "shared" / "summary.json").read_text())
    assert (summary["done"], summary["pending"], summary["this_run"]["done"]) == (4, 0, 2)
    _same(tmp_path / "shared", tmp_path / "alone")


def test_predict__other_weights_need_their_overlay(bundle, images, tmp_path):
    overlay = ["inference.yaml", "methods/plain_network.yaml"]
    network = load_config(bundle, overlay).get_parsed_content("network_def")
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    options = {"input": str(images), "weights": str(tmp_path / "plain.pt"), "progress": False}
    with pytest.raises(SystemExit, match="does not fit"):
        predict(str(bundle), output=str(tmp_path / "out"), **options)
    code = predict(str(bundle), output=str(tmp_path / "out"), overlay="plain_network", **options)
    assert code == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 4
