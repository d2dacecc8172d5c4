"""Every bundle of the checkout, and synthetic data of its kind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from medseg_kit.data.phantoms import ANATOMIES, Scanner, write_phantom_dataset

_FOLDER = Path(__file__).parents[2] / "bundles"
BUNDLES = sorted(path.parents[1] for path in _FOLDER.glob("*/configs/metadata.json"))


def one_a_family() -> list[Path]:
    """Return the bundles that are run: all of SegViz, else one a method, anatomies in turn.

    Its twin has the same components and pipelines (test_contract.py) and would only take minutes.
    """
    families: dict[str, list[Path]] = {}
    for root in BUNDLES:
        families.setdefault(root.name.split("_", 2)[2], []).append(root)
    chosen = families.pop("segviz")
    return chosen + [roots[index % len(roots)] for index, roots in enumerate(families.values())]


# what makes a smoke run small; only the ids that a bundle has are set
TINY: dict[str, Any] = {
    "roi_size": [16, 16, 16],
    "image_size": 32,
    "batch_size": 2,
    "patches": {"full": 8, "eighth": 2},
    "labelled": 1,  # of three patients: batches hold slices of both kinds
    "labelled_batch_size": 1,
    "steps_per_epoch": 2,
    "max_steps": 2,
    "mr_body": "otsu",
    "val_interval": 1,
    "train::trainer::max_epochs": 1,
    "device": "cpu",
    "amp": "off",
}
TIMEOUT_S = 600  # a loaded machine


@dataclass(frozen=True)
class Smoke:
    """A bundle, synthetic data of its kind, and how to run MONAI's command line on them."""

    root: Path
    data: Path
    folder: Path

    def run(
        self, files: list[str], overrides: dict[str, Any], *, launcher: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python -m monai.bundle run`` from a foreign working directory."""
        paths = [str(self.root / "configs" / name) for name in files]
        options = [f"--{key}={value}" for key, value in overrides.items()]
        command = [sys.executable, *launcher, "-m", "monai.bundle", "run"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for name in ("MEDSEG_BUNDLES", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
            environment.pop(name, None)
        process = subprocess.Popen(
            [*command, f"--config_file={paths}", *options],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )
        try:
            out, error = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # torchrun's children too
            out, error = process.communicate()
            pytest.fail(f"still running after {TIMEOUT_S} s: {out[-2000:]}{error[-2000:]}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    def tiny(self, name: str) -> dict[str, Any]:
        """Return the small values of the ids that a configuration has."""
        config = yaml.safe_load((self.root / "configs" / name).read_text())
        small = {**TINY, "support": str(self.data)}  # a one-shot bundle takes its support scan
        return {key: value for key, value in small.items() if key.partition("::")[0] in config}


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    """Return each bundle of the checkout in turn."""
    root: Path = request.param
    return root


@pytest.fixture(scope="module", params=one_a_family(), ids=lambda path: path.name)
def smoke(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """Return one bundle a family with a small synthetic data set of its organs."""
    root: Path = request.param
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    modality = metadata["network_data_format"]["inputs"]["image"]["modality"].split(",")[0]
    organs = yaml.safe_load((root / "configs" / "inference.yaml").read_text())["organs"]
    anatomy = next(
        item
        for item in ANATOMIES.values()
        if set(organs) <= {structure.organ for structure in item.structures}
    )
    folder = tmp_path_factory.mktemp(root.name)
    data = write_phantom_dataset(
        folder / "data",
        organs=organs,
        counts={"support": 1, "training": 3, "validation": 1, "test": 1},
        size=(32, 32, 32),
        scanner=Scanner(modality=modality),
        anatomy=anatomy,
    )
    return Smoke(root, data, folder)
