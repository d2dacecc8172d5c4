"""The study files of the project: they load, and every run composes with its bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from medseg_kit.bundle.config import load_config
from medseg_kit.bundle.rules import check_references
from medseg_kit.bundle.targets import parameters_of
from medseg_kit.methods.mcsc import BalancedContrast
from medseg_kit.study.checks import check_runs
from medseg_kit.study.spec import load_study

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "scripts" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_study__every_run_composes(file, monkeypatch):
    monkeypatch.setenv("MEDSEG_BUNDLES", str(ROOT / "bundles"))
    study = load_study(file)
    trained = [dataclasses.replace(run, paths={}) for run in study.runs if run.mode == "train"]
    check_runs(trained, local_steps=study.budget.get("local_steps"))
    for run in study.runs:
        base = ["train.yaml", "federated.yaml"] if run.mode == "federate" else ["train.yaml"]
        training = load_config(
            str(run.bundle), [*base, *run.overlays], overrides={**run.overrides, **run.paths}
        )
        overrides = run.inference.get("overrides", {})
        overlays = run.inference.get("overlays", ())
        inference = load_config(str(run.bundle), ["inference.yaml", *overlays], overrides=overrides)
        for config in (training, inference):
            config.parse()
            assert check_references(config.get(), run.name) == []
        contrast = training.get().get("train", {}).get("contrast", {})
        start = parameters_of(BalancedContrast)["unlabelled_start"].default
        if contrast.get("_target_", "").endswith(BalancedContrast.__qualname__):
            start = contrast.get("unlabelled_start", start)
            assert isinstance(start, str) or start < study.budget["local_steps"], run.name
    named = {row["method"] for row in study.printed}
    assert not named or named & {run.method for run in study.runs}
    costs = {row["method"].partition(" ")[0] for row in study.printed_cost}
    assert not costs or costs & {run.method for run in study.runs}
