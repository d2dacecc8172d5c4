"""What a training was made with, kept beside its weights and compared where they are used."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from medseg_kit import __version__
from medseg_kit.bundle.options import describe_component, describe_components
from medseg_kit.files import write_json
from medseg_kit.typing import PathLike

logger = logging.getLogger(__name__)

TRAINING = "training.json"
SHARED = (
    "organs",
    "spacing",
    "window",
    "intensity",
    "orientation",
    "slice_direction",
    "image_size",
    "network_channels",
    "patch_size",
    "window_size",
    "embed_dim",
    "classifier",
)
"""Ids that must say the same where a network is trained and where it is used."""


def record_training(parser: ConfigParser, files: Sequence[str]) -> None:
    """Write ``training.json`` into the output folder of a training; nothing for another run.

    It holds the configuration files and all options, those left at their defaults included, no path
    and no name of a case. Of several processes the first one writes.

    Args:
        parser: A composed configuration with its overrides; what it builds is thrown away.
        files: Names of its files.
    """
    described = ("train#step", "train#dataset", "optimizer", "output_dir")
    # MONAI writes "::" for "#" into a configuration once it has read any of it
    trains = "train#trainer" in str(parser.get("run", "")).replace("::", "#")
    if not trains or any(key not in parser for key in described) or _rank() > 0:
        return
    folder = Path(str(parser.get_parsed_content("output_dir")))
    # no expression is evaluated: one may read the data, or wait for the other processes
    step = describe_component(parser, "train#step", evaluate=False)
    options = {**step, **describe_components(parser, evaluate=False)}
    write_json(
        folder / TRAINING,
        {"medseg_kit": __version__, "configuration": list(files), "options": options},
    )


def differences(weights: PathLike, parser: ConfigParser) -> list[str]:
    """Return how a configuration differs from that of the training which left some weights.

    Args:
        weights: File of weights; without a ``training.json`` beside it nothing is known.
        parser: A composed inference.yaml, or evaluate.yaml over train.yaml.
    """
    file = Path(weights).parent / TRAINING
    if not file.is_file():
        return []
    options: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["options"]
    trained = {**options, **options["settings"]}
    found = []
    for key in SHARED:
        if key not in trained or key not in parser:
            continue
        here = describe_component(parser, key)
        if here != trained[key]:
            found.append(
                f"{key} was {trained[key]} in the training of {weights}, here it is {here}"
            )
    return found


def warn_of_differences(weights: PathLike, parser: ConfigParser) -> None:
    """Log what `differences` finds; the labels may be poor then."""
    for difference in differences(weights, parser):
        logger.warning("%s: give the overlay or the values of the training", difference)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
