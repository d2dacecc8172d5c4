"""The gate of every bundle with a federated configuration: one site alone is local training."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from gates import assert_one_site_equals_local

from medseg_kit.fl.plan import Options

ROUNDS = 2
SMALL_IDS = (
    "roi_size",
    "image_size",
    "batch_size",
    "labelled",
    "labelled_batch_size",
    "patches",
    "steps_per_epoch",
    "max_steps",
    "mr_body",
    "amp",
)


def federated_methods(root: Path) -> list[str | None]:
    """Return the overlays that change what a federation trains, and None for the bundle's own."""
    overlays = sorted((root / "configs" / "methods").glob("*.yaml"))
    contents = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in overlays}
    return [None, *(name for name, content in contents.items() if "strategy" in content)]


@pytest.mark.slow
@pytest.mark.integration
def test_one_site__equals_local_training_bit_for_bit(smoke, tmp_path):
    if not (smoke.root / "configs" / "federated.yaml").is_file():
        pytest.skip(f"{smoke.root.name} has no federated configuration")
    for method in federated_methods(smoke.root):
        # distillation from the round's global model is what local training does not have
        rounds = 1 if method == "condistfl" else ROUNDS
        overrides = {k: v for k, v in smoke.tiny("train.yaml").items() if k in SMALL_IDS}
        overrides["client_state"] = "keep"  # a local run keeps its optimiser, too
        options = Options(rounds=rounds, method=method, overrides=overrides)
        out = tmp_path / str(method)
        assert_one_site_equals_local(smoke.root, smoke.data, out, options=options, rounds=rounds)
