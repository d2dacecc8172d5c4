"""Parts of the toy federation: a per-sample step, a private-layer strategy, tiny site folders."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from medseg_kit.engines.step import TrainStep
from medseg_kit.fl.strategies.fedavg import FedAvg

SIDE = 8
ORGANS = ("left", "right")


class PerSampleStep(TrainStep):
    """Mean over the samples of each sample's own cross-entropy; can fail or diverge on demand."""

    def losses(self, engine, batch):
        logits = engine.network(batch["image"])
        target = batch["label"][:, 0].long()
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        return logits, {"ce": loss.flatten(1).mean(1).mean()}


class PrivateLastLayer(FedAvg):
    """The last layer never leaves its site."""

    def placement(self, key):
        return "never_leaves" if key.startswith("model.2.") else "averaged"


def install_bundle(folder):
    """Copy the toy bundle to a folder."""
    shutil.copytree(Path(__file__).parent / "bundle", folder)
    return Path(folder)


def make_site(folder, *, training=2, validation=1, annotated=ORGANS, seed=0, name=None):
    """Write a prepared site folder with random patients whose organs are bright boxes."""
    folder = Path(folder)
    generator = np.random.default_rng(seed)
    content = {
        "schema": 1,
        "name": "toy",
        "modality": "MR",
        "intensity": "arbitrary",
        "spacing": "valid",
        "labels": {"0": "background", "1": "left", "2": "right"},
        "annotated": list(annotated),
        "site": name or folder.name,
        "training": [],
        "validation": [],
        "test": [],
        "sha256": {},
    }
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    sections = ["training"] * training + ["validation"] * validation
    for number, section in enumerate(sections):
        subject = f"{folder.name}-patient{number}"
        image, label = _patient(generator, annotated)
        for kind, volume in (("images", image), ("labels", label)):
            nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / kind / f"{subject}.nii")
        content[section].append(
            {
                "image": f"images/{subject}.nii",
                "label": f"labels/{subject}.nii",
                "subject": subject,
            }
        )
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder


def make_sites(folder):
    """Write the sites a, b and c with 2, 2 and 4 training cases and return their folder."""
    for number, (name, training) in enumerate((("a", 2), ("b", 2), ("c", 4))):
        make_site(Path(folder) / name, training=training, seed=number)
    return Path(folder)


def _patient(generator, annotated):
    label = np.zeros((SIDE,) * 3, dtype=np.uint8)
    for value, organ in enumerate(ORGANS, start=1):
        start = generator.integers(0, SIDE - 3, size=2)
        depth = 0 if value == 1 else SIDE // 2
        box = (
            slice(start[0], start[0] + 3),
            slice(start[1], start[1] + 3),
            slice(depth, depth + 4),
        )
        if organ in annotated:
            label[box] = value
    image = label.astype(np.float32) + generator.normal(0, 0.2, label.shape).astype(np.float32)
    return image, label


def subprocess_environment():
    """Return the environment of a child process that imports the toy's parts."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
    }
