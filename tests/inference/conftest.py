"""Small volumes, a small network and a predictor over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from torch import nn

from medseg_kit.inference.options import PredictOptions
from medseg_kit.inference.predictor import Predictor
from medseg_kit.inference.support import SupportSource
from medseg_kit.inference.volume import VolumeInferer
from medseg_kit.transforms.pipelines import volume_postprocessing, volume_preprocessing
from tests.inference.one_shot_parts import PREPROCESSING, scan, write


def affine_of(kind: str) -> np.ndarray:
    """Return an affine of a named kind of geometry."""
    affine = np.eye(4)
    affine[:3, 3] = [-11, 7, 3]
    linear = {
        "ras": np.diag([1.5, 0.9, 2.5]),
        "lps": np.diag([-1.5, -0.9, 2.5]),
        "permuted": np.array([[0, 0, -3.0], [1.1, 0, 0], [0, -0.8, 0]]),
        "oblique": Rotation.from_euler("xyz", [20, -13, 35], degrees=True).as_matrix()
        @ np.diag([1.4, 1.4, 6.0]),
        "sheared": np.array([[1.5, 0, 0.8], [0, 0.9, 0], [0, 0, 2.5]]),
        "isotropic": np.eye(3),
    }
    affine[:3, :3] = linear[kind]
    return affine


GEOMETRIES = ["ras", "lps", "permuted", "oblique", "sheared"]


def smooth(shape: tuple[int, ...], seed: int = 0, dtype: type = np.int16) -> np.ndarray:
    """Return smooth noise of about +-200."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return (gaussian_filter(noise, 1.5) * 2000).astype(dtype)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | str = "ras") -> Path:
    """Write a NIfTI file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = affine_of(affine) if isinstance(affine, str) else affine
    nib.save(nib.Nifti1Image(array, matrix), path)
    return path


def write_series(folder, array, *, uid="1.2.3", spacing=(1.2, 0.8, 3.0), positions=None, tilt=0.0):
    """Write one DICOM file per slice; array is (H, W, D) with the column index first.

    Each slice lies `tilt` mm further back than the one below.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    depth = array.shape[2]
    for index in range(depth):
        image = SimpleITK.GetImageFromArray(array[:, :, index].T.astype(np.int16))
        image.SetSpacing(spacing[:2])
        z = index * spacing[2] if positions is None else positions[index]
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{index + 1}",
            "0008|0060": "CT",
            "0020|000e": uid,
            "0020|000d": "1.2",
            "0020|0032": f"-10\\{5 + index * tilt}\\{z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(index + 1),
            "0018|0050": str(spacing[2]),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}_{depth - index:03d}.dcm"))
        writer.Execute(image)


class SmallNetwork(nn.Module):
    """Two convolutions; 1 input channel, three classes."""

    def __init__(self, dims: int = 3) -> None:
        super().__init__()
        convolution = nn.Conv3d if dims == 3 else nn.Conv2d
        self.first = convolution(1, 4, 3, padding=1)
        self.second = convolution(4, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(3 * self.first(image))) * 5


@pytest.fixture
def network() -> SmallNetwork:
    torch.manual_seed(1)
    return SmallNetwork().eval()


@pytest.fixture
def make_predictor(network: SmallNetwork, tmp_path: Path) -> Callable[..., Predictor]:
    """Return a function that makes a predictor from `tmp_path/in` to `tmp_path/out`."""

    def make(**changes: Any) -> Predictor:
        preprocessing = volume_preprocessing(spacing=[2, 2, 2], window=[-200, 200])
        arguments = {
            "network": network,
            "inferer": VolumeInferer([12, 12, 12]),
            "preprocessing": preprocessing,
            "postprocessing": volume_postprocessing(preprocessing),
            "input": tmp_path / "in",
            "output_dir": tmp_path / "out",
            "options": PredictOptions(progress=False, device="cpu", organs=["liver", "spleen"]),
        }
        return Predictor(**{**arguments, **changes})

    return make


@pytest.fixture(params=GEOMETRIES)
def geometry(request: pytest.FixtureRequest) -> np.ndarray:
    """Return the affines of files in several orientations, one after the other."""
    return affine_of(request.param)


@pytest.fixture
def kit() -> SimpleNamespace:
    """Return the helpers of this file."""
    return SimpleNamespace(
        affine_of=affine_of,
        smooth=smooth,
        write_nifti=write_nifti,
        write_series=write_series,
        network=SmallNetwork,
    )


@pytest.fixture
def source(tmp_path: Path) -> SupportSource:
    """Return one support scan with its label, as prototypes are made of it."""
    image, label = write(tmp_path / "support", "s", scan())
    return SupportSource(PREPROCESSING, support=image, support_label=label)
