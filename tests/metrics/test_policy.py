import numpy as np
import pytest

from medseg_kit.metrics.policy import score_masks

FULL = np.zeros((5, 5, 5), dtype=bool)
FULL[1:4, 1:4, 1:4] = True
EMPTY = np.zeros_like(FULL)
NAN = float("nan")


@pytest.mark.parametrize(
    ("policy", "pred", "reference", "dice", "distance"),
    [
        ("strict", FULL, FULL, 1, 0),
        ("strict", FULL, EMPTY, 0, NAN),
        ("strict", EMPTY, FULL, 0, NAN),
        ("strict", EMPTY, EMPTY, 1, 0),
        ("reference", FULL, FULL, 1, 0),
        ("reference", FULL, EMPTY, 1, 0),
        ("reference", EMPTY, FULL, 0, 0),
        ("reference", EMPTY, EMPTY, 0, 0),
    ],
)
def test_score_masks__empty_mask_table(policy, pred, reference, dice, distance):
    score = score_masks(pred, reference, spacing=(1, 1, 1), policy=policy)
    found = (score.hd_vox, score.hd_mm, score.hd95_vox, score.hd95_mm)
    np.testing.assert_equal((score.dice, *found), (dice, *[distance] * 4))
    assert score.missed == (pred is EMPTY and reference is FULL)
    assert score.spurious == (pred is FULL and reference is EMPTY)


def test_score_masks__anisotropic_spacing():
    pred = np.roll(FULL, 1, axis=2)
    score = score_masks(pred, FULL, spacing=(1.0, 1.0, 2.5))
    assert (score.hd_vox, score.hd_mm, score.hd95_vox, score.hd95_mm) == (1.0, 2.5, 1.0, 2.5)
    assert score.dice == pytest.approx(2 / 3)


def test_score_masks__lost_spacing_leaves_mm_undefined():
    score = score_masks(FULL, FULL, spacing=None)
    assert score.hd95_vox == 0
    assert np.isnan([score.hd_mm, score.hd95_mm]).all()
    assert np.isnan(score_masks(EMPTY, EMPTY, spacing=None).hd95_mm)


def test_score_masks__unknown_policy():
    with pytest.raises(ValueError, match=r"'lenient'.*strict.*reference"):
        score_masks(FULL, FULL, policy="lenient")
