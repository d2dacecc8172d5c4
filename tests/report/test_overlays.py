import io

import numpy as np
import pytest
from matplotlib.image import imread

from medseg_kit.report.overlays import BOTH, PRED_ONLY, REFERENCE_ONLY, blend, overlap_image


def colors(png):
    """Return the pure colour that each pixel of a picture of a black image was mixed from."""
    return np.round(imread(io.BytesIO(png))[..., :3] * 255 / 0.6).astype(int)


def shares(png, color):
    return (np.abs(colors(png) - np.array(color)).max(axis=-1) <= 3).mean()


def test_blend__red_reference_green_prediction_yellow_both():
    masks = np.eye(3, dtype=bool)[:, None, :]
    picture = blend(np.ones((1, 3)), *masks)
    expected = [
        np.round(0.4 * 255 + 0.6 * np.array(color)) for color in (REFERENCE_ONLY, PRED_ONLY, BOTH)
    ]
    assert np.array_equal(picture[0], expected)
    red, green, yellow = picture[0].astype(int)
    assert red[0] > red[1]
    assert green[1] > green[0]
    assert min(yellow[:2]) > yellow[2]


@pytest.mark.parametrize("shape", [(40, 40), (40, 40, 5)])
def test_overlap_image__areas(shape):
    reference, pred = np.zeros((2, *shape), dtype=int)
    reference[5:25, 10:30] = 2
    pred[15:35, 10:30] = 2
    png = overlap_image(np.zeros(shape), reference, pred, label=2, window=(0, 1))
    for color in (REFERENCE_ONLY, PRED_ONLY, BOTH):
        assert shares(png, color) == pytest.approx(200 / 1600, abs=0.01)
    assert (
        shares(overlap_image(np.zeros(shape), reference, pred, label=1, window=(0, 1)), BOTH) == 0
    )


def test_overlap_image__other_label_is_no_agreement():
    reference = np.ones((20, 20), dtype=int)
    png = overlap_image(np.zeros((20, 20)), reference, reference * 2, window=(0, 1))
    assert shares(png, BOTH) == 0
    assert shares(png, REFERENCE_ONLY) == 1


def test_overlap_image__radiological_view_and_voxel_size():
    reference = np.zeros((20, 10, 4), dtype=int)
    reference[15:, :2, 2] = 1  # right (of the patient) and posterior in RAS
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    picture = imread(
        io.BytesIO(
            overlap_image(
                np.zeros(reference.shape), reference, reference, affine=affine, window=(0, 1)
            )
        )
    )
    assert picture.shape[0] == picture.shape[1] == 320  # 20 mm by 20 mm
    yellow = picture[..., 0] > 0.3
    rows, columns = np.nonzero(yellow)
    assert rows.min() >= 250
    assert columns.max() <= 80
    flipped = overlap_image(
        np.zeros(reference.shape),
        reference[::-1],
        reference[::-1],
        affine=np.diag([-1.0, 2.0, 3.0, 1.0]),
        window=(0, 1),
    )
    assert np.array_equal(imread(io.BytesIO(flipped)), picture)


def test_overlap_image__thick_slices_are_shown_as_they_were_acquired():
    """A short-axis stack: its slices lie nearer to coronal than to axial ones."""
    reference = np.zeros((40, 42, 10), dtype=int)
    reference[10:20, 10:20, 4] = 1
    directions = np.array([[0.8, 0.2, 0.57], [-0.57, 0.5, 0.65], [-0.15, -0.84, 0.5]])
    affine = np.eye(4)
    affine[:3, :3] = directions @ np.diag([1.4, 1.4, 10.0])
    png = overlap_image(np.zeros(reference.shape), reference, reference, affine=affine)
    sides = sorted(imread(io.BytesIO(png)).shape[:2])
    assert sides == pytest.approx([320 * 40 / 42, 320], abs=1)
    assert shares(png, BOTH) == pytest.approx(100 / (40 * 42), abs=0.01)


def test_overlap_image__shapes_differ():
    with pytest.raises(ValueError, match="share one"):
        overlap_image(np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 5)))
