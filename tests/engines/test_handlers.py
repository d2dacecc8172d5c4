"""Validation as a bundle wires it: with cases it runs and keeps the best, without the last."""

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointSaver, MeanSquaredError

from medseg_kit.engines.handlers import MeanLosses, Resume, Validation


def batches(count):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(count, 4, 3, generator=generator)
    return [{"image": x, "label": x.sum(1, keepdim=True)} for x in image]


def make_trainer(folder, num_validation, epochs, *, resume=False, rate=0.05, savers=True):
    torch.manual_seed(0)
    network, device = torch.nn.Linear(3, 1), torch.device("cpu")
    evaluator = SupervisedEvaluator(
        device=device,
        val_data_loader=batches(num_validation),
        network=network,
        decollate=False,
        key_val_metric={
            "error": MeanSquaredError(
                output_transform=lambda output: (output["pred"], output["label"])
            )
        },
        metric_cmp_fn=lambda current, best: best == -1 or current < best,
        val_handlers=[]
        if not savers
        else [
            CheckpointSaver(
                str(folder),
                {"model": network},
                save_key_metric=True,
                key_metric_filename="model.pt",
                key_metric_negative_sign=True,
            )
        ],
    )
    handler = Validation(evaluator, interval=2, last=network, path=folder / "model.pt")
    resume = Resume(folder / "checkpoint.pt", {"network": network}, resume=resume)
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=epochs,
        train_data_loader=batches(3),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=rate),
        loss_function=torch.nn.MSELoss(),
        train_handlers=[handler, resume],
    )
    return trainer, evaluator


def test_validation__runs_at_the_interval_where_there_are_cases(tmp_path, caplog):
    trainer, evaluator = make_trainer(tmp_path, 2, epochs=5)
    trainer.run()
    assert evaluator.state.metrics["error"] < 2.0
    assert evaluator.state.best_metric_epoch in (2, 4, 5)
    assert (tmp_path / "model.pt").is_file()
    assert "no validation cases" not in caplog.text


def test_validation__runs_after_the_last_epoch_too(tmp_path):
    trainer, evaluator = make_trainer(tmp_path, 2, epochs=1)  # its interval is 2
    trainer.run()
    assert evaluator.state.best_metric_epoch == 1
    assert (tmp_path / "model.pt").is_file()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["best_metric_epoch"] == 1


@pytest.mark.parametrize("epochs", [1, 3])
def test_validation__without_cases_keeps_the_last_weights(tmp_path, caplog, epochs):
    trainer, evaluator = make_trainer(tmp_path, 0, epochs)
    trainer.run()
    assert evaluator.state.epoch == 0
    kept = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(kept["weight"], trainer.network.weight)
    assert "no validation cases" in caplog.text


def test_validation__best_weights_outlive_a_resumption(tmp_path):
    trainer, evaluator = make_trainer(tmp_path, 2, epochs=2)
    trainer.run()
    best, kept = evaluator.state.best_metric, (tmp_path / "model.pt").read_bytes()

    trainer, evaluator = make_trainer(tmp_path, 2, epochs=4, resume=True, rate=5.0)  # diverges
    trainer.run()
    assert evaluator.state.metrics["error"] > best
    assert (evaluator.state.best_metric, evaluator.state.best_metric_epoch) == (best, 2)
    assert (tmp_path / "model.pt").read_bytes() == kept

    trainer, _ = make_trainer(tmp_path, 2, epochs=4, rate=5.0)  # not resumed: starts anew
    trainer.run()
    assert (tmp_path / "model.pt").read_bytes() != kept


def test_validation__better_weights_after_a_resumption_replace_the_old(tmp_path):
    make_trainer(tmp_path, 2, epochs=2)[0].run()
    kept = (tmp_path / "model.pt").read_bytes()
    trainer, evaluator = make_trainer(tmp_path, 2, epochs=8, resume=True)
    trainer.run()
    assert evaluator.state.best_metric_epoch > 2
    assert (tmp_path / "model.pt").read_bytes() != kept


def test_resume__an_earlier_training_is_kept_beside_a_new_one(tmp_path, caplog):
    make_trainer(tmp_path, 2, epochs=4)[0].run()
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    make_trainer(tmp_path, 2, epochs=2)[0].run()
    assert (tmp_path / "checkpoint.earlier.pt").read_bytes() == kept
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 2
    assert "`--resume True` would continue it" in caplog.text


def test_validation__a_process_that_keeps_no_weights_resumes(tmp_path):
    """Rank 1 of torchrun: the checkpoint is that of rank 0, which has a saver."""
    make_trainer(tmp_path, 2, epochs=2)[0].run()
    trainer, evaluator = make_trainer(tmp_path, 2, epochs=3, resume=True, savers=False)
    trainer.run()
    assert evaluator.state.best_metric_epoch in (2, 3)


def test_mean_losses__of_each_epoch_where_the_log_looks():
    outputs = iter(
        [
            {"loss": 3.0, "losses": {"supervised": 1.0, "contrast": 2.0}},
            {"loss": 5.0, "losses": {"supervised": 5.0}},
            {"loss": 2.0, "losses": {"supervised": 2.0}},
            {"loss": 4.0, "losses": {"supervised": 4.0}},
        ]
    )

    def step(engine, batch):
        output = next(outputs)
        return {
            "loss": torch.tensor(output["loss"]),
            "losses": {name: torch.tensor(value) for name, value in output["losses"].items()},
        }

    engine = Engine(step)
    engine.state.metrics = {}
    MeanLosses().attach(engine)
    seen = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(engine.state.metrics))
    engine.run([0, 1], max_epochs=2)
    assert seen == [
        # a part is averaged over the steps that had it; one that is the whole sum is not repeated
        {"train_loss": 4.0, "train_loss_supervised": 3.0, "train_loss_contrast": 2.0},
        {"train_loss": 3.0},
    ]
