import pytest
import torch

from medseg_kit.methods.bcp import (
    BidirectionalCopyPasteStep,
    CopyPaste,
    largest_components,
    rectangle_mask,
    region_loss,
)
from medseg_kit.methods.cross_teaching import CrossTeachingStep
from tests.methods.slice_training import make_batch, pair, train, unet


def test_rectangle__two_thirds_of_each_side_anywhere():
    torch.manual_seed(0)
    masks = [rectangle_mask((30, 60)) for _ in range(20)]
    assert {int((1 - mask).sum()) for mask in masks} == {20 * 40}
    assert len({mask.argmin().item() for mask in masks}) > 5


def test_largest_components__one_a_class():
    labels = torch.zeros(1, 12, 12, dtype=torch.int64)
    labels[0, 0:2, 0:2], labels[0, 4:8, 4:8], labels[0, 10, 10] = 1, 1, 2
    kept = largest_components(labels)
    assert int((kept == 1).sum()) == 16
    assert int((kept == 2).sum()) == 1


def test_region_loss__perfect_is_zero_and_regions_count_apart():
    target = torch.randint(0, 3, (2, 12, 12), generator=torch.Generator().manual_seed(0))
    logits = 40.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    mask, ones = rectangle_mask((12, 12)), torch.ones(2)
    regions = [(target, mask, ones), (target, 1 - mask, ones)]
    assert float(region_loss(logits, regions)) == pytest.approx(0, abs=1e-5)
    wrong = [(target, mask, ones), ((target + 1) % 3, 1 - mask, ones)]
    half = [(target, mask, ones), ((target + 1) % 3, 1 - mask, ones / 2)]
    loss, halved = float(region_loss(logits, wrong)), float(region_loss(logits, half))
    assert loss > 1
    assert halved == pytest.approx(loss / 2, rel=1e-3)


def test_phases__the_teacher_starts_from_the_first_phase():
    step, network = BidirectionalCopyPasteStep(total_steps=8, first_phase=0.5), unet()
    train(step, network, [make_batch(seed=seed) for seed in range(4)])
    assert step.teacher.network is None
    first = {name: value.clone() for name, value in network.state_dict().items()}
    train(step, network, [make_batch(seed=9)], learning_rate=0.0)
    for name, value in step.teacher.of(network).named_parameters():
        torch.testing.assert_close(value, first[name])


def test_copy_paste__under_cross_teaching():
    step = CrossTeachingStep(total_steps=4, terms=[CopyPaste()])
    history = train(step, pair(), [make_batch(seed=seed) for seed in range(4)])
    assert all(losses["copy_paste"] > 0 for losses in history)
    history = train(step, pair(), [make_batch(4, 0)])
    assert "copy_paste" not in history[0]
