"""Offline verification of a bundle: files, metadata, configurations, network and weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.scripts import verify_net_in_out
from monai.transforms import Compose

from medseg_kit.bundle.config import load_config
from medseg_kit.bundle.paths import resolve_bundle
from medseg_kit.bundle.record import SHARED
from medseg_kit.bundle.rules import (
    check_files,
    check_inference,
    check_metadata,
    check_overlays,
    check_references,
    check_training,
)
from medseg_kit.bundle.targets import check_components
from medseg_kit.bundle.weights import load_strictly, read_weights
from medseg_kit.typing import PathLike, UserError

OVERLAYS = ("evaluate.yaml", "multi_gpu_train.yaml", "federated.yaml")


def verify_bundle(bundle: PathLike) -> dict[str, list[str]]:
    """Return what is wrong with a bundle, by check; every list is empty when it is sound.

    Needs no network, no data and no GPU. It builds the deployed network once.

    Args:
        bundle: Name or path of the bundle.

    Raises:
        UserError: If there is no such bundle.
    """
    root = resolve_bundle(bundle)
    results = {"overlays": check_overlays(root)}
    if results["overlays"]:
        return results  # nothing composes before every file reads
    inference, problems = _compose(root, ["inference.yaml"])
    results["compose"] = problems
    training, problems = _compose(root, ["train.yaml"])
    results["compose"] += problems
    for name in overlay_files(root):
        results["compose"] += _check_overlay(root, name)
    if inference is None or training is None:
        return results
    config = inference.get()
    organs = config.get("organs")
    trained = config["_meta_"].get("trained_weights", True)
    results["files"] = check_files(root, trained=trained)
    results["metadata"] = check_metadata(root, organs if isinstance(organs, list) else None)
    results["inference"] = check_inference(config)
    results["training"] = check_training(training.get())
    results["shared ids"] = _shared_values(config, training.get())
    results["pipelines"] = _guarded(lambda: _check_pipelines(inference))
    if not results["metadata"]:
        results["network in and out"] = _guarded(lambda: _check_network(root))
    results["weights"] = _guarded(lambda: _check_weights(root, inference, trained=trained))
    return results


def _check_overlay(root: Path, name: str) -> list[str]:
    """Return why an overlay composes neither with ``train.yaml`` nor with ``inference.yaml``."""
    problems = _compose(root, ["train.yaml", name])[1]
    return problems if problems and _compose(root, ["inference.yaml", name])[1] else []


def readiness(root: Path) -> str | None:
    """Return why a bundle's inference would not run, or None when it would.

    Args:
        root: The bundle. Its inference configuration is composed and the weights loaded strictly.
    """
    inference, problems = _compose(root, ["inference.yaml"])
    if inference is None:
        return problems[0]
    problems = _guarded(lambda: _check_weights(root, inference, trained=True))
    return problems[0] if problems else None


def awaits_training(root: Path) -> bool:
    """Return whether a bundle says that it ships no weights, and composes."""
    inference, problems = _compose(root, ["inference.yaml"])
    if inference is None or problems:
        return False
    has_weights = (root / "models" / "model.pt").is_file()
    return not has_weights and inference["_meta_"].get("trained_weights", True) is False


def overlay_files(root: Path) -> list[str]:
    """Return the overlays on ``train.yaml`` that a bundle has, method overlays included."""
    configs = root / "configs"
    methods = sorted(path.relative_to(configs).as_posix() for path in configs.glob("*/**/*.yaml"))
    return [name for name in OVERLAYS if (configs / name).is_file()] + methods


def _compose(root: Path, files: list[str]) -> tuple[ConfigParser | None, list[str]]:
    try:
        parser = load_config(root, files)
        parser.parse()
    except (UserError, ValueError, KeyError) as error:
        return None, [f"{' + '.join(files)}: {error}"]
    name = " + ".join(files)
    return parser, check_references(parser.get(), name) + check_components(parser.get(), name)


def _guarded(check: Callable[[], list[str]]) -> list[str]:
    """Return a check's problems; an error while something is built is a problem of the bundle."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return check()
    except (RuntimeError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        causes = [error, error.__cause__] if error.__cause__ else [error]
        return [" <- ".join(" ".join(str(cause).split()) for cause in causes)]


def _check_pipelines(inference: ConfigParser) -> list[str]:
    problems = []
    for name in ("preprocessing", "postprocessing"):
        pipeline = inference.get_parsed_content(name)
        if not isinstance(pipeline, Compose):
            problems.append(f"inference.yaml: {name} makes {type(pipeline).__name__}, no Compose")
    return problems


def _check_network(root: Path) -> list[str]:
    configs = root / "configs"
    logger = logging.getLogger(verify_net_in_out.__module__)
    disabled, logger.disabled = logger.disabled, True  # it lists its own arguments
    try:
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(configs / "metadata.json"),
            config_file=str(configs / "inference.yaml"),
            device="cpu",
            n=2,
            p=2,
            any=32,
            bundle_root=str(root),
        )
    finally:
        logger.disabled = disabled
    return []


def _check_weights(root: Path, inference: ConfigParser, *, trained: bool) -> list[str]:
    file = root / "models" / "model.pt"
    if not file.is_file() and not trained:
        return []
    load_strictly(inference.get_parsed_content("network_def"), read_weights(file), source=file)
    return []


def _shared_values(inference: dict[str, Any], training: dict[str, Any]) -> list[str]:
    """Return ids whose meaning must be the same when a network is trained and when it is used."""
    return [
        f"{key}: train.yaml says {training[key]}, inference.yaml says {inference[key]}"
        for key in SHARED
        if key in training and key in inference and training[key] != inference[key]
    ]
