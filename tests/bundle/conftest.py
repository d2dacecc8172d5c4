"""A small sound bundle, to break in one place at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml


def _tensor(channels: int, names: list[str]) -> dict:
    return {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": channels,
        "spatial_shape": [8, 8, 8],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(index): name for index, name in enumerate(names)},
    }


METADATA = {
    "schema": "https://example.org/meta_schema.json",
    "version": "0.1.0",
    "changelog": {"0.1.0": "first"},
    "monai_version": "1.6.1",
    "pytorch_version": "2.13.0",
    "numpy_version": "2.4.6",
    "required_packages_version": {"nibabel": "5.4.2"},
    "name": "Toy",
    "task": "Toy segmentation",
    "description": "one organ",
    "authors": "authors",
    "copyright": "copyright",
    "data_source": "none",
    "data_type": "nifti",
    "intended_use": "tests",
    "eval_metrics": {},
    "supported_apps": {},
    "network_data_format": {
        "inputs": {"image": _tensor(1, ["image"])},
        "outputs": {"pred": _tensor(2, ["background", "blob"])},
    },
}

COMMON = {
    "bundle_root": {"_target_": "medseg_kit.bundle.paths.find_bundle_root", "name": "toy_mr_net"},
    "dataset_dir": "data",
    "device": "cpu",
    "organs": ["blob"],
    "network_def": {
        "_target_": "torch.nn.Conv3d",
        "in_channels": 1,
        "out_channels": 2,
        "kernel_size": 1,
    },
    "initialize": [{"_target_": "medseg_kit.bundle.config.check_overrides"}],
}

COMPOSE = {"_target_": "Compose", "transforms": []}

INFERENCE = {
    **COMMON,
    "preprocessing": COMPOSE,
    "postprocessing": COMPOSE,
    "inferer": {"_target_": "SimpleInferer"},
    "dataset": {"_target_": "Dataset", "data": [], "transform": "@preprocessing"},
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "$torch.device(@device)",
        "val_data_loader": "@dataset",
        "network": "@network_def",
        "inferer": "@inferer",
    },
    "run": ["$@evaluator.run()"],
}

TRAIN = {
    **COMMON,
    "network": "@network_def",
    "train": {
        "inferer": {"_target_": "SimpleInferer"},
        "dataset": {"_target_": "Dataset", "data": []},
        "handlers": [{"_target_": "StatsHandler"}],
        "trainer": {
            "_target_": "SupervisedTrainer",
            "device": "$torch.device(@device)",
            "max_epochs": 2,
            "train_data_loader": "@train#dataset",
            "network": "@network",
            "optimizer": "$torch.optim.SGD(@network.parameters())",
            "loss_function": "$torch.nn.Identity()",
        },
    },
    "validate": {"dataset": {"_target_": "Dataset", "data": []}},
    "run": ["$@train#trainer.run()"],
}


@pytest.fixture
def sound_bundle(tmp_path: Path) -> Path:
    """Return a bundle in which `verify_bundle` finds nothing wrong."""
    root = tmp_path / "bundles" / "toy_mr_net"
    for folder in ("configs", "docs", "models"):
        (root / folder).mkdir(parents=True)
    for name in ("LICENSE", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"):
        (root / name).write_text("text\n")
    (root / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    overlay = {"train::trainer::max_epochs": 3, "section": "test"}
    for name, content in (
        ("inference", INFERENCE),
        ("train", TRAIN),
        ("evaluate", overlay),
    ):
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
        (root / "configs" / f"{name}.yaml").write_text(text)
    torch.save(torch.nn.Conv3d(1, 2, 1).state_dict(), root / "models" / "model.pt")
    return root
