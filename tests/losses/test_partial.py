"""Losses for partial labels: golden values, and what an unknown organ must not do."""

import math

import pytest
import torch
from monai.losses import DiceLoss

from medseg_kit.losses.partial import (
    MarginalLoss,
    known_onehot,
    marginal_loss,
    marginal_probabilities,
    multi_head_losses,
)

ORGANS = ["liver", "spleen"]
ALL = torch.ones(1, 3, dtype=torch.bool)
LIVER_ONLY = torch.tensor([[True, True, False]])


def test_multi_head__equals_dice_of_the_owned_organ():
    torch.manual_seed(0)
    logits = {"spleen": torch.randn(2, 2, 4, 4, 4)}
    label = torch.randint(0, 3, (2, 1, 4, 4, 4))
    dice = DiceLoss(to_onehot_y=True, softmax=True)
    losses = multi_head_losses(logits, label, ALL.expand(2, 3), organs=ORGANS, loss_function=dice)
    torch.testing.assert_close(losses["spleen"], dice(logits["spleen"], (label == 2).float()))


def test_multi_head__unannotated_case_has_no_gradient():
    logits = {"liver": torch.randn(2, 2, 4, 4, requires_grad=True)}
    label = torch.zeros(2, 1, 4, 4)
    annotated = torch.tensor([[True, True, True], [True, False, True]])
    dice = DiceLoss(to_onehot_y=True, softmax=True)
    multi_head_losses(logits, label, annotated, organs=ORGANS, loss_function=dice)[
        "liver"
    ].backward()
    gradient = logits["liver"].grad
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0


def test_multi_head__no_annotated_case_gives_zero_with_graph():
    logits = {"spleen": torch.randn(1, 2, 4, 4, requires_grad=True)}
    dice = DiceLoss(to_onehot_y=True, softmax=True)
    loss = multi_head_losses(
        logits, torch.zeros(1, 1, 4, 4), LIVER_ONLY, organs=ORGANS, loss_function=dice
    )["spleen"]
    loss.backward()
    assert loss.item() == 0.0
    assert logits["spleen"].grad.abs().sum() == 0


def test_marginal_probabilities__unknown_mass_goes_to_background():
    probabilities = torch.tensor([0.2, 0.3, 0.5]).view(1, 3, 1, 1)
    merged = marginal_probabilities(probabilities, LIVER_ONLY).flatten()
    torch.testing.assert_close(merged, torch.tensor([0.7, 0.3, 0.0]))


def test_marginal_loss__golden_value():
    # one voxel, p = (.2, .3, .5), truth background, spleen unknown: merged p = (.7, .3)
    logits = torch.tensor([0.2, 0.3, 0.5]).log().view(1, 3, 1, 1)
    label = torch.zeros(1, 1, 1, 1)
    smooth = 1e-5
    dice_background = 1 - (2 * 0.7 + smooth) / (0.7 + 1 + smooth)
    dice_liver = 1 - (0 + smooth) / (0.3 + 0 + smooth)
    expected = (dice_background + dice_liver) / 2 - math.log(0.7)
    assert marginal_loss(logits, label, LIVER_ONLY).item() == pytest.approx(expected, abs=1e-6)


def test_marginal_loss__does_not_depend_on_where_the_unknown_mass_lies():
    label = torch.zeros(1, 1, 1, 1)
    first = torch.tensor([0.6, 0.3, 0.1]).log().view(1, 3, 1, 1)
    second = torch.tensor([0.1, 0.3, 0.6]).log().view(1, 3, 1, 1)
    torch.testing.assert_close(
        marginal_loss(first, label, LIVER_ONLY), marginal_loss(second, label, LIVER_ONLY)
    )


def test_marginal_loss__perfect_prediction_is_zero():
    label = torch.randint(0, 3, (2, 1, 5, 7))
    logits = known_onehot(label, ALL.expand(2, 3)) * 100
    assert marginal_loss(logits, label, ALL.expand(2, 3)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)])
def test_module__equals_function(shape):
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, *shape), torch.randint(0, 3, (2, 1, *shape))
    known = LIVER_ONLY.expand(2, 3)
    assert MarginalLoss()(logits, label, known) == marginal_loss(logits, label, known)


def test_known_onehot__unknown_label_is_background():
    onehot = known_onehot(torch.tensor([0, 1, 2]).view(1, 1, 3), LIVER_ONLY)
    assert onehot.argmax(1).flatten().tolist() == [0, 1, 0]
