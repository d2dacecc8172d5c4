from types import SimpleNamespace

import pytest
import torch
from monai.transforms import KeepLargestConnectedComponent

from medseg_kit.losses.soft_dice import DiceCrossEntropy
from medseg_kit.methods.bcp import (
    BidirectionalCopyPasteStep,
    CopyPaste,
    Mixture,
    exchanged_mixtures,
    labelled_mixtures,
    mixed_loss,
    rectangle_mask,
)
from medseg_kit.methods.cross_teaching import CrossTeachingStep
from medseg_kit.methods.rotation_consistency import RotationConsistencyStep
from medseg_kit.transforms.components import largest_components
from medseg_kit.typing import UserError
from tests.methods.slice_training import CLASSES, SIZE, make_batch, pair, pixelwise, train, unet


def test_rectangle__two_thirds_of_each_side_anywhere():
    torch.manual_seed(0)
    masks = [rectangle_mask((30, 60)) for _ in range(20)]
    assert {int((~mask).sum()) for mask in masks} == {20 * 40}
    assert len({mask.int().argmin().item() for mask in masks}) > 5


def test_largest_components__equal_monai_slice_by_slice():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (5, 12, 12), generator=generator)
    labels[2], labels[3, :, 3:] = 0, 2
    keep = KeepLargestConnectedComponent(is_onehot=False, independent=True)
    expected = torch.stack([torch.as_tensor(keep(label[None])[0]) for label in labels])
    assert torch.equal(largest_components(labels).long(), expected.long())


def test_mixtures__the_papers_halves_and_weights():
    unlabelled_outside, labelled_outside = exchanged_mixtures(4, 8)
    assert unlabelled_outside.outer.tolist() == [4, 5]
    assert unlabelled_outside.inner.tolist() == [0, 1]
    assert (unlabelled_outside.outer_weight, unlabelled_outside.inner_weight) == (0.5, 1.0)
    assert labelled_outside.outer.tolist() == [2, 3]
    assert labelled_outside.inner.tolist() == [6, 7]
    assert (labelled_outside.outer_weight, labelled_outside.inner_weight) == (1.0, 0.5)
    (first_phase,) = labelled_mixtures(4)
    assert [first_phase.outer.tolist(), first_phase.inner.tolist()] == [[0, 1], [2, 3]]
    assert labelled_mixtures(1)[0].outer.tolist() == [0]
    few, more = exchanged_mixtures(1, 4)  # one labelled image, three others
    assert few.inner.tolist() == [0]
    assert more.outer.tolist() == [0]


def test_mixture__blends_images_and_perfect_answers_cost_nothing():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (4, 12, 12), generator=generator)
    mixture, mask = Mixture(torch.tensor([0, 1]), torch.tensor([2, 3])), rectangle_mask((12, 12))
    mixed = mixture.blend(target[:, None].float(), mask)
    assert torch.equal(mixed[0, 0][mask], target[0][mask].float())
    assert torch.equal(mixed[0, 0][~mask], target[2][~mask].float())
    logits = 40.0 * torch.nn.functional.one_hot(mixed[:, 0].long(), 3).movedim(-1, 1).float()
    loss = mixed_loss([mixture], logits, target, mask, loss=DiceCrossEntropy())
    assert float(loss) == pytest.approx(0, abs=1e-5)


def test_mixed_loss__sum_over_both_inputs_as_printed():
    """Half of the Dice sum plus the cross-entropy sum over two inputs of two regions each."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (4, 12, 12), generator=generator)
    logits = torch.randn(2, 3, 12, 12, generator=generator)
    mask, total = rectangle_mask((12, 12)), 0.0
    inputs = [((2, mask, 0.5), (0, ~mask, 1.0)), ((1, mask, 1.0), (3, ~mask, 0.5))]
    for row, regions in zip(logits, inputs, strict=True):
        for source, region, weight in regions:
            p, y = row.softmax(0)[:, region], target[source][region]
            hot = torch.nn.functional.one_hot(y, 3).T.float()
            dice = 1 - (2 * (p * hot).sum(1) + 1e-5) / (p.square().sum(1) + hot.sum(1) + 1e-5)
            entropy = torch.nn.functional.cross_entropy(row[:, region].T, y)
            total += weight * (dice.mean() + entropy) / 2
    mixtures = exchanged_mixtures(2, 4)
    found = mixed_loss(mixtures, logits, target, mask, loss=DiceCrossEntropy())
    assert float(found) == pytest.approx(float(total), rel=1e-5)
    doubled = mixed_loss(mixtures, logits, target, mask, loss=DiceCrossEntropy(1.0, 1.0))
    assert float(doubled) == pytest.approx(2 * float(total), rel=1e-5)


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


def test_copy_paste__labelled_images_alone_until_its_start():
    term = CopyPaste(unlabelled_start=1)
    step = CrossTeachingStep(total_steps=4, terms=[term])
    history = train(step, pair(), [make_batch(4, 0), make_batch(4, 0)])
    assert ["copy_paste" in losses for losses in history] == [True, False]
    step.global_step = 0  # as after a federated round that starts anew: the step's time counts
    assert "copy_paste" in train(step, pair(), [make_batch(4, 0)])[0]


def test_copy_paste__under_a_method_without_branches_is_refused():
    step = RotationConsistencyStep(total_steps=4, terms=[CopyPaste()])
    with pytest.raises(UserError, match="this one leaves none; such terms go under cross teaching"):
        train(step, unet(), [make_batch()])


def test_phases__follow_the_plan_of_a_federation():
    step = BidirectionalCopyPasteStep(total_steps=8, first_phase=0.5)
    step.total_steps = 40  # what a federation plans in all
    assert step.first_steps == 20


def test_teacher__makes_the_pseudo_labels_of_the_second_phase():
    step, network = BidirectionalCopyPasteStep(total_steps=8, first_phase=0.0), unet()
    seen = []
    step.ask_teacher = lambda engine, image: (
        seen.append(len(image)) or torch.zeros(2, CLASSES, 32, 32)
    )
    train(step, network, [make_batch()])
    assert seen == [2]


def test_second_phase__loss_written_out():
    torch.manual_seed(0)
    loss = DiceCrossEntropy(0.4, 0.6)
    step = BidirectionalCopyPasteStep(total_steps=8, first_phase=0.0, supervised_loss=loss)
    network = pixelwise()
    teacher = step.teacher.of(network)
    for each in (teacher, network):
        torch.nn.init.normal_(each.weight)
    batch = make_batch()
    image, label = torch.randn(4, 1, SIZE, SIZE), batch["label"][:2, 0].long()
    torch.manual_seed(1)
    engine = SimpleNamespace(network=network)
    found = step.losses(engine, {**batch, "image": image})[1]["copy_paste"]
    torch.manual_seed(1)
    mask, mixtures = rectangle_mask((SIZE, SIZE)), exchanged_mixtures(2, 4)
    pseudo = largest_components(teacher(image[2:]).argmax(1))
    logits = network(torch.cat([mixture.blend(image, mask) for mixture in mixtures]))
    expected = mixed_loss(mixtures, logits, torch.cat([label, pseudo]), mask, loss=loss)
    torch.testing.assert_close(found, expected)


def test_teacher__averages_the_running_statistics_too():
    step, network = BidirectionalCopyPasteStep(total_steps=8, first_phase=0.0), unet()
    train(step, network, [make_batch()])  # after the first step the teacher equals the student
    for name, value in step.teacher.of(network).named_buffers():
        torch.testing.assert_close(value, network.get_buffer(name))
