"""Shared fixtures: one torch thread, the real data's folder, tiny bundles."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def medseg_data() -> Path:
    """Return the folder of real data; tests that need it skip without `MEDSEG_DATA`."""
    folder = os.environ.get("MEDSEG_DATA")
    if not folder:
        pytest.skip("MEDSEG_DATA is not set: no real data")
    path = Path(folder).resolve()
    if not path.is_dir():
        pytest.fail(f"MEDSEG_DATA={folder} is not a folder")
    return path


@pytest.fixture
def toy_bundle(tmp_path: Path) -> Path:
    """Return a bundle whose run prints its learning rate and root; nothing heavy is built."""
    root = tmp_path / "bundles" / "toy_mr_net"
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
    config = {
        "bundle_root": {"_target_": "medseg_kit.bundle.paths.find_bundle_root", "name": root.name},
        "learning_rate": 0.1,
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2},
        "train": {"trainer": {"max_epochs": 2}, "handlers": [{"interval": 1}]},
        "initialize": [{"_target_": "medseg_kit.bundle.config.check_overrides"}],
        "run": ["$print('ran', @learning_rate, @train#trainer#max_epochs, @bundle_root)"],
    }
    (root / "configs" / "train.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return root
