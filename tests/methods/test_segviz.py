"""SegViz's step: a site trains its own head and leaves the others alone."""

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.losses import DiceLoss

from medseg_kit.methods.condistfl import ConDistFLStep, conditional_distillation
from medseg_kit.methods.segviz import SegVizStep
from medseg_kit.methods.supervised import SupervisedStep
from medseg_kit.networks.segviz import SegVizUNet

ORGANS = ["liver", "spleen"]
SMALL = {"channels": (4, 8), "strides": (2,), "num_res_units": 1}


def batch(annotated: list[bool]) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    label = torch.randint(0, 3, (2, 1, 8, 8))
    known = torch.tensor([annotated, annotated])
    return {"image": torch.randn(2, 1, 8, 8), "label": label, "annotated": known}


def train_once(step, network, data):
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[data],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=DiceLoss(),
        iteration_update=step,
        decollate=False,
    )
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trainer.run()
    after = network.state_dict()
    return {key for key in before if not torch.equal(before[key], after[key])}, trainer.state.output


def parameters_of(network, prefix):
    return {name for name, _ in network.named_parameters() if name.startswith(prefix)}


def test_segviz__unannotated_head_keeps_its_parameters():
    network = SegVizUNet(2, 1, ORGANS, **SMALL)
    step = SegVizStep(ORGANS, DiceLoss(to_onehot_y=True, softmax=True), total_steps=1)
    changed, _ = train_once(step, network, batch([True, True, False]))
    assert parameters_of(network, "heads.liver") & changed
    assert not parameters_of(network, "heads.spleen") & changed
    assert parameters_of(network, "representation") & changed


@pytest.mark.parametrize("partial_labels", ["background", "marginal"])
def test_supervised__trains_one_network(partial_labels):
    network = torch.nn.Conv2d(1, 3, 3, padding=1)
    step = SupervisedStep(ORGANS, partial_labels=partial_labels, total_steps=1)
    changed, output = train_once(step, network, batch([True, True, False]))
    assert changed == {"weight", "bias"}
    assert output["pred"].shape == (2, 3, 8, 8)


def test_supervised__marginal_leaves_unknown_organs_open():
    data = batch([True, True, False])
    losses = {}
    for mode in ("background", "marginal"):
        torch.manual_seed(0)
        step = SupervisedStep(ORGANS, partial_labels=mode, total_steps=1)
        _, output = train_once(step, torch.nn.Conv2d(1, 3, 3, padding=1), data)
        losses[mode] = output["loss"].item()
    assert losses["background"] != losses["marginal"]


def test_supervised__unknown_mode():
    with pytest.raises(ValueError, match="ignore"):
        SupervisedStep(ORGANS, partial_labels="ignore", total_steps=1)


def test_condistfl__distils_only_inside_a_round():
    data = batch([True, True, False])
    network = torch.nn.Conv2d(1, 3, 3, padding=1)
    step = ConDistFLStep(ORGANS, total_steps=2)
    _, output = train_once(step, network, data)
    assert set(output["losses"]) == {"marginal"}
    step.on_round_start(torch.nn.Conv2d(1, 3, 3, padding=1).state_dict())
    _, output = train_once(step, network, data)
    assert set(output["losses"]) == {"marginal", "distillation"}


def test_distillation__same_sharp_prediction_is_near_zero():
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 2] = 100.0  # both see the unlabelled organ everywhere
    known = torch.tensor([[True, True, False]])
    loss = conditional_distillation(logits, logits, torch.zeros(1, 1, 4, 4), known)
    assert loss.item() < 1e-4


def test_distillation__nothing_outside_the_sites_organs():
    logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
    known = torch.tensor([[True, True, False]])
    loss = conditional_distillation(logits, logits.detach(), torch.ones(1, 1, 4, 4), known)
    loss.backward()
    assert loss.item() == pytest.approx(0.0)
    assert logits.grad.abs().sum() == 0


def test_distillation__fully_annotated_case_gives_zero():
    logits = torch.randn(1, 3, 4, 4)
    known = torch.ones(1, 3, dtype=torch.bool)
    assert conditional_distillation(logits, -logits, torch.zeros(1, 1, 4, 4), known) == 0
