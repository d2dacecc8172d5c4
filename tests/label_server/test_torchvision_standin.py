"""The stand-in offers the two torchvision functions that MONAI Label imports."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

FILE = Path(__file__).parents[2] / "scripts/label_server/torchvision_standin/torchvision/utils.py"


@pytest.fixture(scope="module")
def utils():
    spec = importlib.util.spec_from_file_location("torchvision_standin_utils", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_grid__places_images_row_by_row(utils):
    images = torch.stack([torch.full((1, 2, 3), float(value)) for value in (1, 2, 3)])
    grid = utils.make_grid(images, nrow=2, padding=1)
    assert grid.shape == (3, 7, 9)
    expected = torch.zeros(7, 9)
    expected[1:3, 1:4], expected[1:3, 5:8], expected[4:6, 1:4] = 1, 2, 3
    torch.testing.assert_close(grid, expected.expand(3, -1, -1))


def test_make_grid__other_shapes_are_errors(utils):
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        utils.make_grid(torch.zeros(4, 4))


def test_save_image__writes_rounded_pixels(utils, tmp_path):
    utils.save_image(torch.full((1, 2, 2), 0.5), tmp_path / "x.png", padding=0)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), 128)
