"""The semi-supervised methods on toy slices: they learn, stay finite, and resume bit for bit."""

import copy

import pytest
import torch

from medseg_kit.engines.schedules import gaussian_ramp
from medseg_kit.methods.bcp import BidirectionalCopyPasteStep
from medseg_kit.methods.cct import CrossConsistencyStep
from medseg_kit.methods.cct_r import RegistrationSupervision
from medseg_kit.methods.cps import CrossPseudoSupervisionStep
from medseg_kit.methods.cross_teaching import CrossTeachingStep
from medseg_kit.methods.ict import InterpolationConsistencyStep
from medseg_kit.methods.mcsc_v2 import CertaintyContrast
from medseg_kit.methods.mean_teacher import MeanTeacherStep
from medseg_kit.methods.rotation_consistency import RotationConsistencyStep
from medseg_kit.methods.supervised_slices import SupervisedSliceStep
from medseg_kit.methods.uamt import UncertaintyMeanTeacherStep
from medseg_kit.networks.single import SingleNetwork
from tests.methods.slice_training import (
    CLASSES,
    make_batch,
    pair,
    train,
    unet,
    unet_cct,
)

METHODS = {
    "supervised": (SupervisedSliceStep, unet),
    "mean_teacher": (MeanTeacherStep, unet),
    "uamt": (UncertaintyMeanTeacherStep, unet),
    "rotation_consistency": (RotationConsistencyStep, unet),
    "ict": (InterpolationConsistencyStep, unet),
    "cct": (CrossConsistencyStep, unet_cct),
    "cps": (CrossPseudoSupervisionStep, lambda: pair(second=unet(2))),
    "cross_teaching": (CrossTeachingStep, pair),
    "bcp": (BidirectionalCopyPasteStep, unet),
}


def make(name, **options):
    kind, network = METHODS[name]
    if name == "mean_teacher":
        options.setdefault("consistency_start", 0)
    return kind(total_steps=10, **options), network()


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


def test_ten_steps__finite_and_every_weight_moves(method):
    step, network = make(method)
    before = copy.deepcopy(network.state_dict())
    history = train(step, network, [make_batch(seed=seed) for seed in range(10)])
    assert all(torch.tensor(list(losses.values())).isfinite().all() for losses in history)
    still = [name for name, value in network.named_parameters() if torch.equal(value, before[name])]
    assert all("bias" in name for name in still)  # batch norm takes a bias before it away


@pytest.mark.parametrize(("labelled", "unlabelled"), [(4, 0), (0, 4), (1, 1)])
def test_batch__without_a_kind_of_image(method, labelled, unlabelled):
    step, network = make(method)
    batches = [make_batch(labelled, unlabelled, seed=seed) for seed in range(5)]
    history = train(step, network, batches)
    assert all(torch.tensor(list(losses.values())).isfinite().all() for losses in history)
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_batch__without_unlabelled_images_is_warned_of_once(method, caplog):
    step, network = make(method)
    train(step, network, [make_batch(4, 0), make_batch(4, 0)])
    expected = 0 if method == "supervised" else 1
    assert caplog.text.count("has no unlabelled one") == expected


@pytest.mark.parametrize("name", ["cps", "mean_teacher", "rotation_consistency", "cct"])
def test_batch__without_labels_moves_by_the_ramp(name):
    """An adaptive optimiser would make full steps of the smallest unsupervised loss."""

    def distance(num_labelled, done):
        step, network = make(name, ramp=gaussian_ramp())
        step.global_step = done
        before = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        train(step, network, [make_batch(num_labelled, 4)], optimizer=optimizer)
        after = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
        return float((after - before).abs().max())

    first = gaussian_ramp()(0, 10)
    assert distance(2, done=0) == pytest.approx(0.01, rel=0.1)
    assert distance(0, done=0) == pytest.approx(0.01 * first, rel=0.1)
    assert distance(0, done=10) == pytest.approx(0.01, rel=0.1)


def test_batch__all_background(method):
    step, network = make(method)
    batch = make_batch(classes=1)
    train(step, network, [batch] * 4)
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_state__a_resumed_run_equals_an_uninterrupted_one(method):
    batches = [make_batch(seed=seed) for seed in range(6)]

    def run(part, network, optimizer, step, seed):
        torch.manual_seed(seed)
        train(step, network, part, optimizer=optimizer)

    def parts():
        step, network = make(method)
        return step, network, torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    step, network, optimizer = parts()
    run(batches[:4], network, optimizer, step, 1)
    saved = copy.deepcopy((step.state_dict(), network.state_dict(), optimizer.state_dict()))
    run(batches[4:], network, optimizer, step, 2)

    again, restored, other = parts()
    for target, state in zip((again, restored, other), saved, strict=True):
        target.load_state_dict(state)
    run(batches[4:], restored, other, again, 2)
    for name, value in network.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value), name


def test_teacher__follows_the_student_and_equals_it_after_the_first_step():
    step, network = make("mean_teacher")
    train(step, network, [make_batch()])
    teacher = step.teacher.of(network)
    for mine, theirs in zip(teacher.parameters(), network.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert not mine.requires_grad


def test_mean_teacher__waits_for_its_start():
    step, network = make("mean_teacher", consistency_start=3)
    history = train(step, network, [make_batch(seed=seed) for seed in range(5)])
    assert ["consistency" in losses for losses in history] == [False] * 3 + [True] * 2


def test_uamt__threshold_golden_values():
    step, _ = make("uamt")
    assert step.threshold == pytest.approx(0.521028, abs=1e-6)
    step.global_step = 10
    assert step.threshold == pytest.approx(0.693147, abs=1e-6)


def test_uamt__no_certain_pixel_costs_nothing(monkeypatch):
    monkeypatch.setattr(UncertaintyMeanTeacherStep, "threshold", 0.0)
    step, network = make("uamt")
    history = train(step, network, [make_batch()])
    assert history[0]["consistency"] == 0
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_supervised__does_not_look_at_unlabelled_images():
    losses = []
    for value in (0.0, 1.0):
        step, network = make("supervised")
        batch = make_batch()
        batch["image"][2:] = value
        losses.append(train(step, network, [batch], learning_rate=0.0)[0])
    assert losses[0] == losses[1]


def test_cross_teaching__each_student_learns_from_the_other():
    step, network = make("cross_teaching")
    batch = make_batch()
    train(step, network, [batch], learning_rate=0.0)
    # the terms see the batch that the step has used
    assert "branches" not in batch or len(batch["branches"]) == 2
    seen = {}
    step.terms = [lambda engine, batch: seen.update(batch) or {}]
    train(step, network, [make_batch()], learning_rate=0.0)
    first, second = seen["branches"]
    label = seen["label"][:2, 0].long()
    assert torch.equal(first.target[:2], label)
    assert torch.equal(first.target[2:], second.logits[2:].argmax(1))
    assert torch.equal(second.target[2:], first.logits[2:].argmax(1))
    torch.testing.assert_close(first.teaching[2:], second.logits[2:].float().softmax(1))
    torch.testing.assert_close(first.teaching[:2], first.logits[:2].float().softmax(1))
    assert not first.teaching.requires_grad


def test_labelled_images_must_come_first():
    step, network = make("cross_teaching")
    batch = make_batch()
    batch["labelled"] = batch["labelled"].flip(0)
    with pytest.raises(ValueError, match="must come first"):
        train(step, network, [batch])


def test_cross_teaching__a_teacher_may_supply_the_classes():
    step, network = CrossTeachingStep(total_steps=10, ema_decay=0.5), pair()
    history = train(step, network, [make_batch(seed=seed) for seed in range(3)])
    assert "teaching_first" in history[-1]
    assert step.state_dict()["teacher"].keys() == network.state_dict().keys()
    train(step, network, [make_batch(4, 0), make_batch(0, 4)])


def branches_of(step, network, batch):
    seen = {}
    step.terms = [lambda engine, batch: seen.update(batch) or {}]
    train(step, network, [batch], learning_rate=0.0)
    return seen["branches"]


@pytest.mark.parametrize("kind", [MeanTeacherStep, UncertaintyMeanTeacherStep])
def test_mean_teacher__leaves_its_branch_for_terms(kind):
    batch = make_batch()
    (branch,) = branches_of(kind(total_steps=10), unet(), batch)
    assert torch.equal(branch.target[:2], batch["label"][:2, 0].long())
    assert torch.equal(branch.target[2:], branch.teaching[2:].argmax(1))
    assert branch.logits.requires_grad
    assert not branch.teaching.requires_grad


@pytest.mark.parametrize(("labelled", "unlabelled"), [(2, 2), (4, 0), (0, 4)])
def test_mean_teacher__its_teacher_may_be_the_second_branch(labelled, unlabelled):
    network = SingleNetwork(unet(), ("full", "eighth"), 8, 4)
    step = MeanTeacherStep(total_steps=10, teacher_branch=True)
    student, teacher = branches_of(step, network, make_batch(labelled, unlabelled))
    assert student.projected["eighth"].maps().shape == teacher.projected["eighth"].maps().shape
    assert student.projected["full"].maps().requires_grad
    assert not teacher.projected["full"].maps().requires_grad
    assert not teacher.logits.requires_grad
    pseudo = student.target[labelled:]
    assert torch.equal(pseudo, teacher.logits[labelled:].argmax(1))
    assert torch.equal(teacher.target[labelled:], student.logits[labelled:].argmax(1))


def test_certainty_contrast__on_mean_teacher_and_on_cps():
    contrast = CertaintyContrast(CLASSES, 10, confidence=0.0, bank_size=64)
    step = MeanTeacherStep(total_steps=10, teacher_branch=True, terms=[contrast])
    history = train(step, SingleNetwork(unet(), ("full", "eighth"), 8, 4), [make_batch()] * 3)
    assert history[-1]["contrast"] > 0
    contrast = CertaintyContrast(CLASSES, 10, confidence=0.0, bank_size=64)
    step = CrossPseudoSupervisionStep(total_steps=10, terms=[contrast])
    network = pair(second=unet(2), scales=("full", "eighth"))
    assert train(step, network, [make_batch()] * 3)[-1]["contrast"] > 0


def test_registration_supervision__on_uamt():
    batch = make_batch()
    batch["registered_label"] = batch["label"].flip(0)
    batch["has_registered"] = torch.ones(4, dtype=torch.bool)
    step = UncertaintyMeanTeacherStep(total_steps=10, terms=[RegistrationSupervision()])
    assert train(step, unet(), [batch])[0]["registration"] > 0


@pytest.mark.usefixtures("with_bf16")
def test_ten_steps__reduced_precision(method):
    step, network = make(method, amp="bf16")
    history = train(step, network, [make_batch(seed=seed) for seed in range(3)])
    assert all(torch.tensor(list(losses.values())).isfinite().all() for losses in history)


def test_image_not_finite__stops_before_the_weights(method):
    step, network = make(method)
    before = [value.clone() for value in network.parameters()]
    batch = make_batch()
    batch["image"][:] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        train(step, network, [batch])
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
