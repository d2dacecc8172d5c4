"""The base training step: what it owns, and that no NaN reaches a weight."""

from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import list_data_collate
from monai.engines import SupervisedTrainer

from medseg_kit.engines.handlers import EpochSeed, Resume, epoch_seed
from medseg_kit.engines.schedules import linear
from medseg_kit.engines.step import TrainStep, annotated_classes
from medseg_kit.methods.mean_teacher import MeanTeacherStep


class Regression(TrainStep):
    """Mean squared error of a linear network."""

    def losses(self, engine: Any, batch: dict[str, Any]) -> Any:
        pred = engine.network(batch["image"])
        return pred, {"error": (pred - batch["label"]).square().mean()}


def batches(count: int, value: float = 1.0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(count, 4, 3, generator=generator)
    return [{"image": x, "label": x.sum(1, keepdim=True) * value} for x in image]


def make_trainer(step: TrainStep, data: list, epochs: int = 1, handlers: tuple = ()) -> Any:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1)
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=data,
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=0.1),
        loss_function=torch.nn.MSELoss(),
        iteration_update=step,
        train_handlers=list(handlers),
        decollate=False,
    )


def test_step__learns_and_counts():
    step = Regression(total_steps=60)
    trainer = make_trainer(step, batches(20), epochs=3)
    trainer.run()
    assert step.global_step == 60
    assert trainer.state.output["loss"].item() < 0.05


def test_step__learning_rate_follows_the_planned_steps():
    step = Regression(total_steps=10, lr_schedule=linear(1.0, 0.0))
    trainer = make_trainer(step, batches(5))
    trainer.run()  # half of the planned steps: the last one ran at step 4
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.6)


def test_step__nan_stops_before_the_weights():
    step = Regression(total_steps=10)
    trainer = make_trainer(step, batches(1, value=float("nan")))
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    with pytest.raises(FloatingPointError, match="error"):
        trainer.run()
    after = trainer.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_step__terms_add_to_the_loss():
    step = Regression(total_steps=1, terms=[lambda engine, batch: {"extra": torch.tensor(100.0)}])
    trainer = make_trainer(step, batches(1))
    trainer.run()
    assert trainer.state.output["loss"].item() > 100
    assert set(trainer.state.output["losses"]) == {"error", "extra"}


def test_step__state_round_trip():
    first, second = Regression(total_steps=5), Regression(total_steps=5)
    make_trainer(first, batches(3)).run()
    second.load_state_dict(first.state_dict())
    assert second.global_step == 3


@pytest.mark.parametrize("options", [{"amp": "int8"}, {"total_steps": 0}])
def test_step__wrong_options(options):
    with pytest.raises(ValueError, match=r"amp|total_steps"):
        Regression(**{"total_steps": 1, **options})


def test_annotated__defaults_to_all_and_checks_its_shape():
    image = torch.zeros(2, 1, 4, 4)
    assert annotated_classes({"image": image}, 3).all()
    with pytest.raises(ValueError, match="annotated"):
        annotated_classes({"image": image, "annotated": torch.ones(2, 2)}, 3)


def test_annotated__as_collated_from_lists():
    flags = list_data_collate(
        [{"annotated": [True, True, False]}, {"annotated": [True, False, True]}]
    )
    batch = {"image": torch.zeros(2, 1, 4, 4), **flags}
    assert annotated_classes(batch, 3).tolist() == [[True, True, False], [True, False, True]]


def test_epoch_seed__same_numbers_whatever_ran_before():
    drawn = []

    def record(engine: Any) -> None:
        drawn.append(torch.rand(1).item())

    for noise in (0, 3):
        trainer = make_trainer(Regression(total_steps=2), batches(1), epochs=2)
        EpochSeed(7, "site-a").attach(trainer)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, record)
        torch.rand(noise)
        trainer.run()
    assert drawn[:2] == drawn[2:]
    assert epoch_seed(7, "site-a", 1) != epoch_seed(7, "site-b", 1)


def test_resume__equals_the_uninterrupted_run(tmp_path):
    def run(epochs: int, resume: bool) -> Any:
        step = Regression(total_steps=40, lr_schedule=linear(1.0, 0.0))
        trainer = make_trainer(step, batches(10), epochs=epochs)
        objects = {"network": trainer.network, "optimizer": trainer.optimizer, "step": step}
        Resume(tmp_path / "checkpoint.pt", objects, resume=resume).attach(trainer)
        trainer.run()
        return trainer.network.state_dict()

    whole = run(4, resume=False)
    run(2, resume=False)
    continued = run(4, resume=True)
    assert all(torch.equal(whole[key], continued[key]) for key in whole)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["checkpoint.earlier.pt", "checkpoint.pt"]  # the second run began anew


def test_step__infinite_gradient_leaves_the_weights_alone(caplog):
    step = Regression(total_steps=1, clip_norm=1.0)
    trainer = make_trainer(step, batches(1))
    trainer.network.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = trainer.network.weight.detach().clone()
    trainer.run()
    assert torch.equal(trainer.network.weight, before)
    assert "step 0 is left out" in caplog.text


class Counting:
    """A term with state: its weight is the number of its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, engine: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"count": torch.tensor(float(self.calls))}

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


def test_terms__their_state_is_part_of_the_step():
    step = Regression(total_steps=10, terms=[lambda engine, batch: {}, Counting()])
    make_trainer(step, batches(3)).run()
    again = Regression(total_steps=10, terms=[lambda engine, batch: {}, Counting()])
    again.load_state_dict(step.state_dict())
    assert again.terms[1].calls == 3


def test_group_schedules__replace_the_schedule_of_one_group():
    step = Regression(
        total_steps=10, lr_schedule=linear(1.0, 0.0), group_schedules={"slow": linear(0.0, 1.0)}
    )
    trainer = make_trainer(step, batches(5))
    trainer.optimizer.param_groups[0]["name"] = "slow"
    trainer.run()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.4)


def test_step__infinite_gradient_is_left_out_without_clipping_too(caplog):
    step = Regression(total_steps=1)
    step.losses = lambda engine, batch: (
        batch["label"],
        {"root": (0.0 * engine.network(batch["image"]).sum()).sqrt()},  # its gradient is infinite
    )
    trainer = make_trainer(step, batches(1))
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    trainer.run()
    assert "left out" in caplog.text
    after = trainer.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_step__group_schedules_by_the_name_of_the_group():
    step = Regression(total_steps=4, group_schedules={"slow": linear(0.5, 0.5)})
    trainer = make_trainer(step, batches(1))
    trainer.optimizer = torch.optim.SGD(
        [
            {"name": "slow", "params": [trainer.network.weight]},
            {"name": "other", "params": [trainer.network.bias]},
        ],
        lr=0.1,
    )
    trainer.run()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.05, 0.1]
    step.group_schedules = {"fast": linear(1.0, 1.0)}
    with pytest.raises(ValueError, match=r"fast.*slow"):
        trainer.run()


def test_step__refuses_the_state_of_another_method():
    class Other(TrainStep):
        losses = None

    state = Other(total_steps=1).state_dict()
    step = MeanTeacherStep(total_steps=1)
    with pytest.raises(ValueError, match=r"method: Other; .* MeanTeacherStep\. Resume"):
        step.load_state_dict(state)
    del state["method"]  # as a checkpoint of an earlier version
    Other(total_steps=1).load_state_dict(state)


def test_step__refuses_the_state_of_other_terms():
    first, second = (
        Regression(total_steps=5, terms=[lambda engine, batch: {}]),
        Regression(total_steps=5),
    )
    with pytest.raises(ValueError, match=r"loss terms: 1; .* 0"):
        second.load_state_dict(first.state_dict())
