"""Synthetic CT volumes and a temporary bundle for `benchmark.py`: the same work for both routes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import yaml
from monai.networks.nets import UNet

ORGANS = [f"organ{index:02d}" for index in range(1, 15)]
GRID_MM = (3.0, 3.0, 3.0)
WINDOW = (-175.0, 250.0)
NETWORK = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": len(ORGANS) + 1,
    "channels": [16, 32, 64, 128, 256],
    "strides": [2, 2, 2, 2],
    "num_res_units": 2,
    "norm": "batch",
}
_FIELD_MM = (384.0, 384.0, 320.0)
_TRAINING_STEPS = 400
_LEARNING_RATE = 5e-3
_CROPS, _CROP_SIDE = 2, 32  # cubes a step, and their side in voxels


def draw(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a synthetic CT (HU, int16) and its labels (uint8): a body with 14 ellipsoids."""
    random = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, side, dtype=np.float32) for side in shape]
    x, y, z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
    body = (x / 0.82) ** 2 + (y / 0.62) ** 2 + 0 * z < 1
    image = np.where(body, np.float32(-60), np.float32(-1000))
    labels = np.zeros(shape, np.uint8)
    for value in range(1, len(ORGANS) + 1):
        angle = 2.4 * value
        radius = 0.2 + 0.025 * value
        centre = (radius * np.cos(angle), 0.75 * radius * np.sin(angle), -0.75 + 0.1 * value)
        size = 0.11 + 0.05 * random.random(3)
        inside = sum(
            ((axis - place) / extent) ** 2
            for axis, place, extent in zip((x, y, z), centre, size, strict=True)
        )
        labels[inside < 1] = value
        image[inside < 1] = -90 + 23 * value
    image += random.normal(scale=8, size=shape).astype(np.float32)
    return image.astype(np.int16), labels


def write_cases(folder: Path, shape: tuple[int, ...], count: int) -> None:
    """Write ``count`` volumes of a field of view of 384 x 384 x 320 mm, if they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    spacing = [extent / side for extent, side in zip(_FIELD_MM, shape, strict=True)]
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1])
    affine[:3, 3] = [190, 190, -160]
    for seed in range(count):
        path = folder / f"case{seed}.nii.gz"
        if not path.exists():
            nib.save(nib.Nifti1Image(draw(shape, seed)[0], affine), path)


def write_bundle(root: Path, *, tiny: bool = False) -> Path:
    """Write a bundle with `inference.yaml`, the stock route `stock.yaml`, and a trained network."""
    (root / "configs").mkdir(parents=True, exist_ok=True)
    (root / "models").mkdir(exist_ok=True)
    (root / "configs" / "metadata.json").write_text(json.dumps({"version": "0.0.1"}))
    for name, content in {"inference": _inference(), "stock": _stock()}.items():
        path = root / "configs" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    weights = root / "models" / "model.pt"
    if not weights.exists():
        torch.save(_train(2 if tiny else _TRAINING_STEPS).state_dict(), weights)
    return root


def _train(steps: int) -> UNet:
    """Return a network that finds the ellipsoids, so that boundaries are like those of organs.

    Crops lie around an organ, each as often, else most of them would show the background alone.
    """
    torch.manual_seed(0)
    network = UNet(**NETWORK)
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    # the running statistics of batch norm settle only when the weights do
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    shape = tuple(int(extent / grid) for extent, grid in zip(_FIELD_MM, GRID_MM, strict=True))
    cases = [draw(shape, seed) for seed in (100, 101)]
    random = np.random.default_rng(0)
    for _ in range(steps):
        crops = [_crop(*cases[random.integers(2)], random) for _ in range(_CROPS)]
        images, labels = (torch.stack(part) for part in zip(*crops, strict=True))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        schedule.step()
    return network


def _crop(
    image: np.ndarray, labels: np.ndarray, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a cube ``(1, S, S, S)`` of an image in its window and its labels ``(S, S, S)``."""
    places = np.argwhere(labels == random.integers(1, len(ORGANS) + 1))
    centre = places[random.integers(len(places))] + random.integers(-8, 9, 3)
    first = np.clip(centre - _CROP_SIDE // 2, 0, np.array(labels.shape) - _CROP_SIDE)
    part = tuple(slice(start, start + _CROP_SIDE) for start in first)
    scaled = np.clip((image[part] - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)
    return (
        torch.from_numpy(scaled.astype(np.float32))[None],
        torch.from_numpy(labels[part].astype(np.int64)),
    )


def _common() -> dict[str, object]:
    return {
        "bundle_root": {
            "_target_": "medseg_kit.bundle.paths.find_bundle_root",
            "name": "benchmark_ct_unet",
        },
        "dataset_dir": "data",
        "output_dir": "predictions",
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        "device": "cpu",
        "fast": False,
        "network_def": {"_target_": "UNet", **NETWORK},
        "network": "$@network_def.to(@device)",
    }


def _inference() -> dict[str, object]:
    pipelines = "medseg_kit.transforms.pipelines"
    return _common() | {
        "preprocessing": {
            "_target_": f"{pipelines}.volume_preprocessing",
            "spacing": list(GRID_MM),
            "window": list(WINDOW),
        },
        "inferer": {
            "_target_": "medseg_kit.inference.volume.VolumeInferer",
            "roi_size": [96, 96, 96],
            "fast": "@fast",
            "full_precision": ["model.2"],
        },
        "postprocessing": {
            "_target_": f"{pipelines}.volume_postprocessing",
            "preprocessing": "@preprocessing",
        },
        "predictor": {
            "_target_": "medseg_kit.inference.predictor.Predictor",
            **{name: f"@{name}" for name in ("network", "inferer")},
            **{name: f"@{name}" for name in ("preprocessing", "postprocessing", "output_dir")},
            "input": "@dataset_dir",
            "options": {
                "_target_": "medseg_kit.inference.options.PredictOptions",
                "checkpoint": "@checkpoint",
                "device": "@device",
                "organs": ORGANS,
                "progress": False,
            },
        },
        "run": ["$@predictor.run()"],
    }


def _stock() -> dict[str, object]:
    """Return the same work with MONAI's transforms, inferer and evaluator, as zoo bundles do it."""
    low, high = WINDOW
    steps = [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": "%axes"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": list(GRID_MM), "mode": "bilinear"},
        {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": low,
            "a_max": high,
            "b_min": 0.0,
            "b_max": 1.0,
            "clip": True,
        },
        {"_target_": "EnsureTyped", "keys": "image"},
    ]
    back = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "",
            "separate_folder": False,
            "resample": False,
        },
    ]
    return _common() | {
        "axes": [["L", "R"], ["P", "A"], ["I", "S"]],
        "preprocessing": {"_target_": "Compose", "transforms": steps},
        "dataset": {
            "_target_": "Dataset",
            "data": {
                "_target_": "medseg_kit.inference.cases.list_images",
                "source": "@dataset_dir",
            },
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "num_workers": 1,
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [96, 96, 96],
            "sw_batch_size": 2,
            "overlap": 0.25,
        },
        "postprocessing": {"_target_": "Compose", "transforms": back},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": [
                {
                    "_target_": "CheckpointLoader",
                    "load_path": "@checkpoint",
                    "load_dict": {"model": "@network"},
                }
            ],
        },
        "run": ["$@evaluator.run()"],
    }
