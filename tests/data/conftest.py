"""Tiny raw data sets in the MSD layout with a manifest, for the tests of preparation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, settings

from medseg_kit.data.plan import make_plan
from medseg_kit.data.prepare import prepare_dataset

# Shared machines stall for longer than hypothesis's default deadline.
settings.register_profile("data", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("data")

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
Prepare = Callable[..., dict[str, Any]]
SUBJECTS = [f"case_{index}" for index in range(6)]


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)


def tiny_manifest() -> dict[str, Any]:
    """A data set of six subjects with two organs, raw values 2 and {1, 3}, and two sites."""
    return {
        "schema": 1,
        "kind": "dataset",
        "name": "tiny",
        "title": "A tiny data set",
        "source": "the tests",
        "licence": "none",
        "citation": "none",
        "modality": "CT",
        "intensity": "HU",
        "spacing": "valid",
        "layout": "msd",
        "folders": ["Tiny"],
        "num_subjects": 6,
        "stored_intensity": {"slope": 2, "intercept": -100, "range": [0, 255]},
        "labels": {0: "background", 1: "right part", 2: "liver", 3: "left part"},
        "laterality": [[1, 3]],
        "views": {
            "two": {1: {"name": "liver", "raw": [2]}, 2: {"name": "parts", "raw": [1, 3]}},
            "three": {1: {"name": "spleen"}, 2: {"name": "liver", "raw": [2]}},
        },
        "default_view": "two",
        "splits": {
            "listed": {
                "rule": "listed",
                "source": "the tests",
                "training": SUBJECTS[:4],
                "test": SUBJECTS[4:],
            },
            "last": {"rule": "last_sorted", "source": "the tests", "validation": 1, "test": 2},
        },
        "default_split": "listed",
        "sites": {
            "pair": {
                "view": "two",
                "split": "listed",
                "members": {
                    "site-liver": {
                        "organs": ["liver"],
                        "training": SUBJECTS[:1],
                        "validation": SUBJECTS[1:2],
                    },
                    "site-parts": {
                        "organs": ["parts"],
                        "training": SUBJECTS[2:3],
                        "validation": SUBJECTS[3:4],
                    },
                },
            }
        },
    }


@pytest.fixture
def raw_set(tmp_path: Path) -> Path:
    """Six good cases below ``tmp_path/raw/Tiny``."""
    root = tmp_path / "raw" / "Tiny"
    for index, subject in enumerate(SUBJECTS):
        rng = np.random.default_rng(index)
        label = np.zeros((8, 7, 6), np.uint8)
        label[1, 2:4, 1:3], label[3:5, 2:5, 2:5], label[6, 2:4, 1:3] = 3, 2, 1
        write_nifti(
            root / "imagesTr" / f"{subject}.nii.gz",
            rng.integers(0, 256, label.shape).astype(np.uint8),
        )
        write_nifti(root / "labelsTr" / f"{subject}.nii.gz", label)
    return root


@pytest.fixture
def manifest_file(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny manifest, changed at the top level, and return its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**tiny_manifest(), **changes}))
        return path

    return write


@pytest.fixture
def prepare(raw_set: Path, manifest_file: Callable[..., Path], tmp_path: Path) -> Prepare:
    """Prepare the tiny set, its manifest changed at the top level, into ``tmp_path/out``."""

    def run(*, sites: str | None = "pair", changes: dict[str, Any] | None = None, **kw: Any) -> Any:
        plan = make_plan(manifest_file(**(changes or {})), source=raw_set.parent, sites=sites)
        return prepare_dataset(plan, tmp_path / "out", **kw)

    return run
