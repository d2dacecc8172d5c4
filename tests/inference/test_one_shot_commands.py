"""One-shot bundles from the command line: prototypes, prediction, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg_kit.cli.predict import predict
from medseg_kit.cli.support import support
from medseg_kit.networks.support_prototypes import load_supports
from medseg_kit.typing import UserError
from tests.inference.one_shot_parts import (
    dice,
    scan,
    write,
    write_bundle,
)


def _labels(folder: Path) -> np.ndarray:
    return np.asarray(nib.load(folder / "q.nii.gz").dataobj)


def test_commands__support_then_predict(tmp_path):
    bundle = write_bundle(tmp_path)
    scan_file, label = write(tmp_path / "support", "s", scan())
    image, truth = write(tmp_path / "query", "q", scan(2, seed=1))
    out = tmp_path / "prototypes.pt"
    assert support(str(bundle), image=scan_file, label=label, out=str(out), device="cpu") == 0
    assert [each.modality for each in load_supports(out)] == ["MR"]

    common = {"input": image, "device": "cpu", "progress": False}
    predict(str(bundle), output=str(tmp_path / "a"), support=str(out), **common)
    predict(
        str(bundle),
        output=str(tmp_path / "b"),
        support=scan_file,
        support_label=label,
        **common,
    )
    np.testing.assert_array_equal(_labels(tmp_path / "a"), _labels(tmp_path / "b"))
    expected = torch.as_tensor(nib.load(truth).get_fdata())
    assert dice(torch.as_tensor(_labels(tmp_path / "a")), expected, 1) > 0.75
    record = json.loads((tmp_path / "a" / "q.json").read_text())
    assert record["labels"] == {"1": "liver", "2": "spleen"}


def test_commands__another_support_predicts_again(tmp_path):
    bundle = write_bundle(tmp_path)
    image, _ = write(tmp_path / "query", "q", scan())
    times = []
    for shift in (0, 0, 2):
        scan_file, label = write(tmp_path / "support", "s", scan(shift))
        predict(
            str(bundle),
            input=image,
            output=str(tmp_path / "out"),
            support=scan_file,
            support_label=label,
            device="cpu",
            progress=False,
        )
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        written = (tmp_path / "out" / "q.nii.gz").stat().st_mtime_ns
        assert summary["done"] == 1
        times.append(written)
    assert times[0] == times[1] < times[2]


def test_commands__without_prototypes(tmp_path):
    bundle = write_bundle(tmp_path)
    image, _ = write(tmp_path / "query", "q", scan())
    with pytest.raises(SystemExit, match=r"error: .*support_prototypes\.pt.*medseg support"):
        predict(str(bundle), input=image, output=str(tmp_path / "o"), device="cpu", progress=False)


def test_support__wrong_use(tmp_path, repository):
    bundle = write_bundle(tmp_path)
    with pytest.raises(UserError, match=r"must end in \.pt"):
        support(str(bundle), image="a", label="b", out="prototypes")
    other = repository / "bundles" / "hippocampus_mr_segviz"
    with pytest.raises(UserError, match="is no one-shot bundle: it takes no --support"):
        predict(str(other), input="a", output="b", support="c")
    with pytest.raises(UserError, match="is no one-shot bundle"):
        support(str(other), image="a", label="b", out="p.pt", device="cpu")


@pytest.mark.slow
def test_commands__monai_does_the_same(tmp_path, repository):
    bundle = write_bundle(tmp_path)
    scan_file, label = write(tmp_path / "support", "s", scan())
    image, _ = write(tmp_path / "query", "q", scan(2, seed=1))
    given = {"support": scan_file, "support_label": label}
    predict(str(bundle), input=image, output=str(tmp_path / "a"), device="cpu", **given)
    words = [sys.executable, "-m", "monai.bundle", "run"]
    words += ["--config_file", str(bundle / "configs" / "inference.yaml")]
    words += ["--dataset_dir", image, "--output_dir", str(tmp_path / "b")]
    words += [part for key, value in given.items() for part in (f"--{key}", value)]
    result = subprocess.run(
        words,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    np.testing.assert_array_equal(_labels(tmp_path / "a"), _labels(tmp_path / "b"))


def test_commands__a_missing_organ_stands_in_the_record_of_each_case(tmp_path):
    bundle = write_bundle(tmp_path)
    scan_file, label = write(tmp_path / "support", "s", scan(organs=(1,)))
    image, _ = write(tmp_path / "query", "q", scan(seed=1))
    where = {"output": str(tmp_path / "out"), "support": scan_file, "support_label": label}
    predict(str(bundle), input=image, device="cpu", progress=False, **where)
    record = json.loads((tmp_path / "out" / "q.json").read_text())
    assert record["warnings"] == ["the support has no spleen: it is not looked for"]
