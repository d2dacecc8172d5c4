import pytest
import torch

from medseg_kit.losses.soft_dice import DiceCrossEntropy, cross_entropy, soft_dice, soft_overlap


def one_hot(target, classes):
    return torch.nn.functional.one_hot(target, classes).movedim(-1, 1).float()


def test_dice__perfect_prediction_is_zero():
    target = torch.randint(0, 4, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    assert float(soft_dice(one_hot(target, 4), target)) < 1e-6


def test_dice__disjoint_foreground_of_equal_area():
    """Two classes, 16 foreground pixels of 64 each, apart: background overlaps in 32 of 48."""
    target, pred = torch.zeros(1, 8, 8, dtype=torch.int64), torch.zeros(1, 8, 8, dtype=torch.int64)
    target[0, :2], pred[0, 6:] = 1, 1
    expected = ((1 - 2 * 32 / 96) + 1) / 2
    assert float(soft_dice(one_hot(pred, 2), target)) == pytest.approx(expected, abs=1e-5)


def test_dice__absent_class_costs_nothing():
    target = torch.zeros(1, 8, 8, dtype=torch.int64)
    target[0, :4] = 1
    assert float(soft_dice(one_hot(target, 4), target)) < 1e-6


def test_weights__leave_pixels_out():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, 8, 8), generator=generator)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    weight = torch.zeros(2, 8, 8)
    weight[:, :, :4] = 1
    kept = cross_entropy(logits[..., :4], target[..., :4])
    torch.testing.assert_close(cross_entropy(logits, target, weight), kept)
    probabilities = logits.softmax(1)
    kept = soft_dice(probabilities[..., :4], target[..., :4])
    torch.testing.assert_close(soft_dice(probabilities, target, weight[:, None]), kept)


def test_module__sum_of_both_parts_with_gradient():
    target = torch.randint(0, 3, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    loss = DiceCrossEntropy(1.0, 1.0)(logits, target)
    parts = cross_entropy(logits, target[:, 0]) + soft_dice(logits.softmax(1), target[:, 0])
    torch.testing.assert_close(loss, parts)
    loss.backward()
    assert float(logits.grad.abs().sum()) > 0


def test_overlap__equals_dice_against_a_one_hot_segmentation():
    torch.manual_seed(0)
    probabilities = torch.randn(2, 3, 4, 4).softmax(1)
    target = torch.randint(0, 3, (2, 4, 4))
    one_hot = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    torch.testing.assert_close(
        soft_overlap(probabilities, one_hot), soft_dice(probabilities, target)
    )
    assert float(soft_overlap(one_hot, one_hot)) == 0
    assert float(soft_overlap(one_hot[:, :2] * 0, one_hot[:, :2] * 0)) == 0
