"""Validation as a bundle wires it: with cases it runs and keeps the best, without the last."""

import pytest
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointSaver, MeanSquaredError

from medseg_kit.engines.handlers import Validation


def batches(count):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(count, 4, 3, generator=generator)
    return [{"image": x, "label": x.sum(1, keepdim=True)} for x in image]


def make_trainer(folder, num_validation, epochs):
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
        val_handlers=[
            CheckpointSaver(
                str(folder),
                {"model": network},
                save_key_metric=True,
                key_metric_filename="model.pt",
            )
        ],
    )
    handler = Validation(evaluator, interval=2, last=network, path=folder / "model.pt")
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=epochs,
        train_data_loader=batches(3),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.05),
        loss_function=torch.nn.MSELoss(),
        train_handlers=[handler],
    )
    return trainer, evaluator


def test_validation__runs_at_the_interval_where_there_are_cases(tmp_path, caplog):
    trainer, evaluator = make_trainer(tmp_path, 2, epochs=5)
    trainer.run()
    assert evaluator.state.metrics["error"] < 2.0
    assert evaluator.state.best_metric_epoch in (2, 4)
    assert (tmp_path / "model.pt").is_file()
    assert "no validation cases" not in caplog.text


@pytest.mark.parametrize("epochs", [1, 3])
def test_validation__without_cases_keeps_the_last_weights(tmp_path, caplog, epochs):
    trainer, evaluator = make_trainer(tmp_path, 0, epochs)
    trainer.run()
    assert evaluator.state.epoch == 0
    kept = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(kept["weight"], trainer.network.weight)
    assert "no validation cases" in caplog.text
