"""What terms and teachers depend on comes back from a file bit for bit."""

import io

import pytest
import torch

from medseg_kit.engines.schedules import gaussian_ramp, linear
from medseg_kit.methods.cct_r import RegistrationSupervision, SupervisedContrast
from medseg_kit.methods.cross_teaching import CrossTeachingStep
from medseg_kit.methods.mcsc import BalancedContrast
from medseg_kit.methods.mcsc_v2 import CertaintyContrast
from medseg_kit.methods.mean_teacher import MeanTeacherStep
from medseg_kit.methods.reco import RegionalContrast
from medseg_kit.networks.single import SingleNetwork
from medseg_kit.typing import UserError
from tests.methods.slice_training import (
    CLASSES,
    IdentityMaps,
    make_batch,
    pair,
    train,
    unet,
    with_registered,
)

SCALES = ("full", "eighth")


def cross_teaching_with(*terms, scales=SCALES, **options):
    step = CrossTeachingStep(total_steps=10, ramp=gaussian_ramp(), terms=terms, **options)
    return step, pair(second=unet(2), scales=scales)


def mean_teacher_with(term):
    step = MeanTeacherStep(total_steps=10, consistency_start=2, teacher_branch=True, terms=[term])
    return step, SingleNetwork(unet(), SCALES, 8, 4)


def certainty_contrast():
    return CertaintyContrast(CLASSES, 10, confidence=0.34, bank_size=200, num_keys=50, weight=1.0)


WITH_TERMS = {
    "mcsc": lambda: cross_teaching_with(
        BalancedContrast({"full": 8, "eighth": 2}, unlabelled_start=3, weight=1.0)
    ),
    "mcsc_v2": lambda: cross_teaching_with(certainty_contrast()),
    "cct_r": lambda: cross_teaching_with(
        RegistrationSupervision(schedule=linear(1.0, 0.0)),
        SupervisedContrast(CLASSES, confidence=0.3, maps=IdentityMaps(), bank_size=3, weight=1.0),
        scales=("quarter",),
    ),
    "cross_teaching_teacher": lambda: cross_teaching_with(ema_decay=0.9, scales=None),
    "mean_teacher_mcsc_v2": lambda: mean_teacher_with(certainty_contrast()),
    "reco": lambda: cross_teaching_with(RegionalContrast(CLASSES, num_queries=16, num_keys=8)),
}


@pytest.mark.parametrize("name", WITH_TERMS)
def test_state__of_terms_comes_back_from_a_file_bit_for_bit(name):
    batches = [with_registered(make_batch(seed=seed)) for seed in range(5)]

    def parts():
        step, network = WITH_TERMS[name]()
        return step, network, torch.optim.AdamW(network.parameters(), 1e-3)

    def finish(step, network, optimizer):
        torch.manual_seed(2)
        history = train(step, network, batches[3:], optimizer=optimizer)
        return history, network.state_dict()

    step, network, optimizer = parts()
    torch.manual_seed(1)
    train(step, network, batches[:3], optimizer=optimizer)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (step, network, optimizer)], file)
    history, state = finish(step, network, optimizer)

    again = parts()
    file.seek(0)
    for part, content in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(content)
    resumed, restored = finish(*again)
    assert resumed == history
    for key, value in state.items():
        assert torch.equal(restored[key], value), key


OTHERS = {
    "loss terms": (WITH_TERMS["mcsc"], WITH_TERMS["reco"]),
    "teacher": (
        lambda: cross_teaching_with(ema_decay=0.9, scales=None),
        lambda: cross_teaching_with(scales=None),
    ),
    "use of registrations": (
        WITH_TERMS["cct_r"],
        lambda: cross_teaching_with(
            RegistrationSupervision(), SupervisedContrast(CLASSES), scales=("quarter",)
        ),
    ),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("turned", [False, True])
def test_state__of_another_configuration_is_refused(what, turned):
    written, read = (make()[0] for make in (OTHERS[what][::-1] if turned else OTHERS[what]))
    with pytest.raises(UserError, match=f"the checkpoint's {what}"):
        read.load_state_dict(written.state_dict())


def test_state__of_a_bank_of_another_size_is_refused():
    step, network = WITH_TERMS["mcsc_v2"]()
    train(step, network, [make_batch()])
    other = CertaintyContrast(CLASSES, 10, bank_size=100)
    with pytest.raises(UserError, match=r"the checkpoint's bank_size: 200; .* 100"):
        other.load_state_dict(step.terms[0].state_dict())
