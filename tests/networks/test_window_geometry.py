"""Sizes of window transformers: stages, shifts, drop-path rates, and sizes that do not fit."""

import pytest

from medseg_kit.networks.window_geometry import WindowGeometry
from medseg_kit.typing import UserError


def test_places__published_sizes():
    stages = WindowGeometry().places()
    assert [[p.resolution for p in stage] for stage in stages] == [
        [56] * 2,
        [28] * 2,
        [14] * 2,
        [7] * 2,
    ]
    assert [[p.shift for p in stage] for stage in stages] == [[0, 3], [0, 3], [0, 3], [0, 0]]
    assert [stage[0].dim for stage in stages] == [96, 192, 384, 768]


def test_places__small_variant():
    stages = WindowGeometry(128, 4, 4, 48).places()
    assert [(stage[1].resolution, stage[1].window, stage[1].shift) for stage in stages] == [
        (32, 4, 2),
        (16, 4, 2),
        (8, 4, 2),
        (4, 4, 0),
    ]


def test_drop_path_rates__published_list():
    rates = [rate for stage in WindowGeometry().drop_path_rates() for rate in stage]
    expected = [0, 0.028571, 0.057143, 0.085714, 0.114286, 0.142857, 0.171429, 0.2]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_tap_channels__named_by_the_true_stride():
    assert WindowGeometry().tap_channels() == {"full": 96, "quarter": 96, "eighth": 192}
    assert WindowGeometry(112, 2).tap_channels() == {"full": 96, "quarter": 192}


@pytest.mark.parametrize(
    ("options", "nearest"),
    [
        ({"image_size": 256}, 224),
        ({"image_size": 100}, 224),
        ({"image_size": 400}, 448),
        ({"image_size": 0}, 224),
        ({"image_size": 130, "window_size": 4}, 128),
        ({"image_size": 120, "patch_size": 2}, 112),
    ],
)
def test_image_size__error_names_the_nearest_that_fits(options, nearest):
    with pytest.raises(UserError, match=f"the nearest that fits is {nearest}"):
        WindowGeometry(**options)
    WindowGeometry(**{**options, "image_size": nearest})


def test_heads__must_divide_the_channels():
    with pytest.raises(UserError, match="num_heads 3 must divide the 50 channels"):
        WindowGeometry(embed_dim=50)


def test_depths__and_heads_must_agree():
    with pytest.raises(UserError, match="one entry a stage"):
        WindowGeometry(depths=(2, 2))
