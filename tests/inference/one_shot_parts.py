"""A stand-in encoder, synthetic scans, and a one-shot bundle made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml
from monai.data import MetaTensor
from torch import nn
from torch.nn import functional

from medseg_kit.inference.one_shot import OneShotInferer
from medseg_kit.inference.support import SupportSource
from medseg_kit.transforms.pipelines import volume_preprocessing

ORGANS = ("liver", "spleen")
SIZE = 32
NAME = "phantom_mr_cowpro"
PREPROCESSING = volume_preprocessing(intensity="ct_or_mr")


class Encoder(nn.Module):
    """Half the resolution; one channel a level of grey, so that grey values are told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        levels = torch.linspace(-2, 4, 16, device=image.device)[None, :, None, None]
        return functional.avg_pool2d(torch.exp(-self.scale * (image[:, :1] - levels) ** 2), 2)


def scan(
    shift: int = 0,
    *,
    depth: int = 18,
    organs: tuple[int, ...] = (1, 2),
    ct: bool = False,
    length: int = 8,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and a label (SIZE, SIZE, depth); `shift` moves everything along z.

    The body's outline wanders with z, so that the scans can be laid beside each other.
    """
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    image = np.zeros((SIZE, SIZE, depth), np.float32)
    label = np.zeros((SIZE, SIZE, depth), np.uint8)
    for z in range(depth):
        place = z - shift
        middle = 15 + 4 * np.sin(place / 3)
        body = ((x - 15.5) / 13) ** 2 + ((y - middle) / 9) ** 2 < 1
        image[body, z] = 100
        for value, centre, bright in ((1, (10, middle), 200), (2, (22, middle), 300)):
            first = 4 if value == 1 else 6
            if value in organs and first <= place < first + length:
                organ = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 16
                image[organ, z], label[organ, z] = bright, value
    image += rng.normal(0, 2, image.shape).astype(np.float32)
    if ct:
        image = image - 125
        image[0, 0] = -1000
    else:
        image = image.clip(0)
    return image, label


def write(folder: Path, name: str, arrays: tuple[np.ndarray, np.ndarray]) -> tuple[str, str]:
    """Write an image and a label; return their paths."""
    paths = []
    for kind, array in zip(("images", "labels"), arrays, strict=True):
        path = folder / kind / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])), path)
        paths.append(str(path))
    return paths[0], paths[1]


def inferer(source: SupportSource | None, **changes) -> OneShotInferer:
    return OneShotInferer(slice_size=(SIZE, SIZE), support=source, sw_batch_size=5, **changes)


def query(folder: Path, *args, **kwargs) -> tuple[MetaTensor, torch.Tensor]:
    """Return a prepared volume (1, 1, H, W, D) and its label, of `scan` with these arguments."""
    image, label = write(folder / "query", "q", scan(*args, seed=1, **kwargs))
    volume = PREPROCESSING({"image": image})["image"]
    return volume[None], torch.as_tensor(nib.load(label).get_fdata())[None, None]


def write_bundle(folder: Path) -> Path:
    """Write a one-shot bundle whose parts are those of this file, with its weights."""
    module = "tests.inference.one_shot_parts"
    config: dict[str, Any] = {
        "bundle_root": {"_target_": "medseg_kit.bundle.paths.find_bundle_root", "name": NAME},
        "dataset_dir": "data",
        "output_dir": "predictions",
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        "device": "cpu",
        "organs": list(ORGANS),
        "support": "$@bundle_root + '/models/support_prototypes.pt'",
        "support_label": None,
        "network_def": {
            "_target_": "medseg_kit.networks.one_shot.OneShotNetwork",
            "encoder": {"_target_": f"{module}.Encoder"},
            "classifier": {"_target_": "medseg_kit.networks.prototypes.PrototypeClassifier"},
            "organs": "@organs",
        },
        "preprocessing": {
            "_target_": "medseg_kit.transforms.pipelines.volume_preprocessing",
            "keys": ["image"],
            "intensity": "ct_or_mr",
        },
        "support_source": {
            "_target_": "medseg_kit.inference.support.SupportSource",
            "preprocessing": "@preprocessing",
            "support": "@support",
            "support_label": "@support_label",
        },
        "inferer": {
            "_target_": "medseg_kit.inference.one_shot.OneShotInferer",
            "slice_size": [SIZE, SIZE],
            "support": "@support_source",
        },
        "postprocessing": {
            "_target_": "medseg_kit.transforms.pipelines.volume_postprocessing",
            "preprocessing": "@preprocessing",
        },
        "predictor": {
            "_target_": "medseg_kit.inference.predictor.Predictor",
            "network": "@network_def",
            "inferer": "@inferer",
            "preprocessing": "@preprocessing",
            "postprocessing": "@postprocessing",
            "input": "@dataset_dir",
            "output_dir": "@output_dir",
            "options": {
                "_target_": "medseg_kit.inference.options.PredictOptions",
                "checkpoint": "@checkpoint",
                "device": "@device",
                "organs": "@organs",
            },
        },
        "initialize": [{"_target_": "medseg_kit.bundle.config.check_overrides"}],
        "run": ["$@predictor.run()"],
    }
    root = folder / NAME
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    (root / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
    (root / "configs" / "inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    torch.save({"encoder.scale": torch.tensor(2.0)}, root / "models" / "model.pt")
    return root


def dice(labels: torch.Tensor, truth: torch.Tensor, value: int) -> float:
    one, other = labels == value, truth == value
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))
