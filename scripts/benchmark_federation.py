"""Rows of `benchmark.py` about federations: a round beyond its local steps, and averaging."""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

BUNDLE = "abdomen_ct_segviz"
ROUNDS, STEPS = 4, 20
SMALL = {"roi_size": [48, 48, 32], "steps_per_epoch": STEPS, "amp": "off"}


def federated_round(arguments: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return seconds of plain local training of four sites, and of the same federated, a round."""
    import torch

    from medseg_kit.bundle.config import load_config
    from medseg_kit.data.datalist import site_folders
    from medseg_kit.data.phantoms import write_phantom_sites
    from medseg_kit.fl.ledger import read_ledger
    from medseg_kit.fl.plan import Options
    from medseg_kit.fl.simulation import simulate

    torch.set_num_threads(arguments.threads)
    overrides = {**SMALL, "steps_per_epoch": 1} if arguments.tiny else SMALL
    peer: list[float] = []
    own: list[float] = []
    with tempfile.TemporaryDirectory() as work:
        organs = load_config(BUNDLE, ["train.yaml"])["organs"]
        write_phantom_sites(
            Path(work) / "data", organs=organs, patients_per_site=4, size=(64, 64, 48), seed=0
        )
        sites = Path(work) / "data" / "sites"
        for repeat in range(arguments.repeats):
            folders = site_folders(sites).values()
            peer.append(sum(local_epoch(folder, work, overrides) for folder in folders))
            out = Path(work) / f"run{repeat}"
            simulate(BUNDLE, sites, out, options=Options(rounds=ROUNDS, overrides=overrides))
            seconds = [
                record["seconds"]
                for record in read_ledger(out / "ledger.jsonl")
                if record["type"] == "round" and record["round"] > 1
            ]
            own.append(statistics.median(seconds))
    return peer, own


def local_epoch(site: Path, work: str, small: dict[str, Any]) -> float:
    """Return the median seconds of an epoch of plain local training after the first."""
    from ignite.engine import Events

    from medseg_kit.bundle.config import load_config

    overrides: dict[str, Any] = {
        **small,
        "dataset_dir": str(site),
        "output_dir": work,
        "save_checkpoint": False,
        "val_interval": ROUNDS + 1,
        "train#trainer#max_epochs": ROUNDS,
    }
    trainer = load_config(BUNDLE, ["train.yaml"], overrides=overrides).get_parsed_content(
        "train#trainer"
    )
    ends: list[float] = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: ends.append(time.perf_counter()))
    trainer.run()
    return statistics.median(after - before for before, after in itertools.pairwise(ends))


def aggregation(arguments: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return seconds of a float64 loop over a dict, and of ours: 25 M parameters, 10 sites."""
    import torch

    from medseg_kit.fl.state import weighted_mean

    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    width = 8 if arguments.tiny else 256
    shapes = {f"kernel{i}": (width, width, 3, 3, 3) for i in range(14)}
    shapes |= {f"vector{i}": (256,) for i in range(150)}
    states = {
        f"site{number}": {
            name: torch.randn(shape, generator=generator) for name, shape in shapes.items()
        }
        for number in range(10)
    }
    weights = {site: float(number + 1) for number, site in enumerate(states)}
    total = sum(weights.values())

    def loop() -> dict[str, torch.Tensor]:
        mean = {}
        for name, shape in shapes.items():
            summed = torch.zeros(shape, dtype=torch.float64)
            for site in sorted(states):
                summed = summed + states[site][name].double() * (weights[site] / total)
            mean[name] = summed.float()
        return mean

    peer, own = [], []
    for _ in range(max(arguments.repeats, 3)):
        for function, seconds in ((loop, peer), (lambda: weighted_mean(states, weights), own)):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return peer, own
