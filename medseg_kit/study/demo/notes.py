"""What a reader of a demonstration's table must know: patients, equal work, costs, versions."""

from __future__ import annotations

import platform

import torch

from medseg_kit import __version__
from medseg_kit.bundle.config import load_config
from medseg_kit.study.demo.data import DemoData
from medseg_kit.study.demo.settings import Settings


def make_notes(settings: Settings, data: DemoData, *, seed: int) -> list[str]:
    """Return paragraphs of plain text for the end of the page.

    Args:
        settings: The demonstration.
        data: Its patients.
        seed: Seed of everything random.
    """
    steps = settings.site_steps
    return [
        settings.origin,
        "; ".join(data.describe()) + ".",
        f"Equal work: every site takes {settings.rounds} rounds x {settings.local_steps} = {steps} "
        "optimiser steps in each federation and for its single-site model; pooled training takes "
        f"the {settings.num_sites * steps} steps of all sites together. Batch, learning rate, "
        "augmentation and sizes are the same. Each model's weights are those with the best Dice "
        "on validation patients; nothing was chosen on the outside patients. One seed.",
        f"A site takes {steps} steps here, {shipped_steps(settings.bundle)} in "
        f"{settings.bundle}'s own configuration: the table shows how the parts work together, not "
        "how good the methods can be.",
        "Conventional averaging and pooled training deploy one ordinary network and count organs "
        "that a site does not label as background. SegViz keeps normalisation layers per organ: "
        f"its inference passes {settings.num_organs} times through the shared network, theirs "
        "once.",
        f"medseg_kit {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, seed {seed}.",
    ]


def shipped_steps(bundle: str) -> int:
    """Return the optimiser steps of a site in a bundle's own federated configuration.

    Args:
        bundle: Name or path of the bundle.
    """
    parser = load_config(bundle, ["train.yaml", "federated.yaml"])
    return int(parser.get_parsed_content("total_steps"))
