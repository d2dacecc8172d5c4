"""Centres with other label budgets: teachers and banks stay, and every centre's weights count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gates import global_state, records

from medseg_kit.data.phantoms import CARDIAC, Scanner, write_phantom_dataset
from medseg_kit.fl.plan import Options
from medseg_kit.fl.simulation import simulate

ORGANS = ("right ventricle", "myocardium", "left ventricle")
LABELLED = {"few": 1, "none": 0, "all": 2}  # of 2 training patients each
ROUNDS = 2
SMALL: dict[str, Any] = {
    "image_size": 32,
    "batch_size": 2,
    "labelled_batch_size": 1,
    "steps_per_epoch": 2,
    "amp": "off",
}
METHODS = {
    "cardiac_mr_semi_supervised": ("mean_teacher", {"train::step::consistency_start": 0}),
    "cardiac_mr_mcsc_v2": (None, {"train::contrast::confidence": 0.1}),
}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("centres")
    for seed, (name, number) in enumerate(LABELLED.items()):
        site = write_phantom_dataset(
            folder / name,
            organs=ORGANS,
            counts={"training": 2, "validation": 1},
            size=(32, 32, 8),
            seed=seed,
            scanner=Scanner(modality="MR"),
            anatomy=CARDIAC,
        )
        (site / "site.yaml").write_text(f"name: {name}\noverrides: {{labelled: {number}}}\n")
    return folder


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
@pytest.mark.parametrize("name", METHODS)
def test_federation__of_unequal_label_budgets(repository, sites, tmp_path, name):
    method, settings = METHODS[name]
    options = Options(rounds=ROUNDS, method=method, overrides={**SMALL, **settings})
    simulate(repository / "bundles" / name, sites, tmp_path, options=options)

    rows = records(tmp_path, "site")
    assert [row["status"] for row in rows] == ["ok"] * len(LABELLED) * ROUNDS
    losses = {row["site"]: set(row["losses"]) for row in rows}
    assert not any(loss.startswith("supervised") for loss in losses["none"])
    assert any(loss.startswith("supervised") for loss in losses["few"] & losses["all"])
    only_few = losses["few"] - losses["all"]
    assert any(loss.startswith(("consistency", "teaching")) for loss in only_few)

    shared = global_state(tmp_path)
    assert all(bool(value.isfinite().all()) for value in shared.values())
    assert not any("teacher" in key or "bank" in key for key in shared)
    states = list(tmp_path.rglob("client_state/round_00002_*.pt"))
    assert len(states) == len(LABELLED)
    for path in states:
        step = torch.load(path, weights_only=True)["step"]
        assert step["teacher"] if method else step["terms"][-1]["banks"]
