import numpy as np
import pytest

from medseg_kit.metrics.overlap import dice_score


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3)])
def test_dice_score__golden(shape):
    pred, reference = np.zeros((2, *shape), dtype=bool)
    pred[0:2, 0:2], reference[1:3, 0:2] = True, True
    assert dice_score(pred, reference) == pytest.approx(0.5)
    assert dice_score(pred, pred) == 1.0
    assert dice_score(pred, ~pred) == 0.0


def test_dice_score__both_empty_is_undefined():
    empty = np.zeros((3, 3), dtype=bool)
    assert np.isnan(dice_score(empty, empty))


def test_dice_score__shapes_differ():
    with pytest.raises(ValueError, match=r"\(3, 3\), reference \(3, 4\)"):
        dice_score(np.zeros((3, 3), dtype=bool), np.zeros((3, 4), dtype=bool))
