"""CCT-R trained on registrations that were made: four volumes, two of them labelled."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from medseg_kit.bundle.config import load_config
from medseg_kit.cli.register import register
from medseg_kit.methods.feature_maps import FeatureMaps

SMALL = {
    "device": "cpu",
    "amp": "off",
    "image_size": 32,
    "organs": ["outer", "inner"],
    "batch_size": 4,
    "labelled_batch_size": 2,
    "steps_per_epoch": 3,
    "train#trainer#max_epochs": 2,
    "save_checkpoint": False,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_cct_r__learns_from_registered_labels_and_positives(
    repository, dataset, tmp_path, monkeypatch
):
    """Golden property: finite losses, and features of other volumes at registered places."""
    assert register(str(dataset), out=str(tmp_path / "reg"), labelled=[2]) == 0
    found = []
    sample = FeatureMaps.sample

    def count(bank, *words):
        features, there = sample(bank, *words)
        found.append(int(there.sum()))
        return features, there

    monkeypatch.setattr(FeatureMaps, "sample", count)
    overrides = {
        **SMALL,
        "dataset_dir": str(dataset),
        "output_dir": str(tmp_path / "run"),
        "labelled": 2,
        "registration": str(tmp_path / "reg"),
    }
    parser = load_config(
        repository / "bundles" / "cardiac_mr_cct_r", ["train.yaml"], overrides=overrides
    )
    trainer = parser.get_parsed_content("train#trainer")
    history = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: history.append(engine.state.output["losses"])
    )
    trainer.run()
    assert len(history) == 6
    for losses in history:
        assert all(torch.isfinite(value) for value in losses.values())
        assert losses["registration"] > 0
        assert losses["contrast"] > 0
    assert sum(found) > 0
