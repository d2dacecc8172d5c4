import io

import numpy as np
import pytest
from matplotlib.image import imread

from medseg_kit.report.grids import qualitative_grid


def row(title, columns=("ground truth", "ours")):
    image = np.linspace(0, 1, 16 * 12 * 4).reshape(16, 12, 4)
    label = np.zeros((16, 12, 4), np.uint8)
    label[4:9, 3:8, 2] = 1
    return {
        "title": title,
        "image": image,
        "affine": np.eye(4),
        "maps": dict.fromkeys(columns, label),
    }


def test_grid__one_row_a_case_one_column_a_method():
    one = imread(io.BytesIO(qualitative_grid([row("a")], organs=["liver"])))
    two = imread(io.BytesIO(qualitative_grid([row("a"), row("b")], organs=["liver"])))
    assert two.shape[0] > one.shape[0]
    assert two.shape[1] == one.shape[1]


def test_grid__columns_must_agree():
    with pytest.raises(ValueError, match="same columns"):
        qualitative_grid([row("a"), row("b", columns=("ground truth",))], organs=["liver"])
