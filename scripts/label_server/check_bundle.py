"""What MONAI Label 0.8.5 asks of a bundle, checked before the server starts.

One bundle that MONAI Label cannot load stops its whole server, with a traceback, and a bundle
without weights is left out without a word. The checks here name the file, the id and the fix.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, Invertd

# MONAI Label takes these words in a bundle's name for other kinds of model.
RESERVED_WORDS = ("detection", "classification", "deepedit", "deepgrow")
TRAINING_IDS = (
    "network",
    "run",
    "device",
    "bundle_root",
    "train#trainer#max_epochs",
    "train#dataset#data",
    "validate#dataset#data",
)


class BundleError(ValueError):
    """MONAI Label cannot serve this bundle; the message says why and what to change."""


def check_inference(bundle: Path) -> None:
    """Raise `BundleError` unless MONAI Label can load the bundle and run inference with it.

    Args:
        bundle: Folder of the bundle.
    """
    words = [word for word in RESERVED_WORDS if word in bundle.name.lower()]
    if words:
        raise BundleError(f"the folder name contains '{words[0]}'; rename the bundle")
    _check_metadata(bundle / "configs" / "metadata.json")
    parser, config_name = _read_config(bundle, "inference")
    parser["device"] = "cpu"  # MONAI Label passes a string too
    if not isinstance(parser.get("network_def"), dict):
        raise BundleError(f"{config_name}: network_def must be a component written out in full")
    network = _instantiate(parser, "network_def", config_name)
    _check_weights(bundle / "models", network)
    for part in ("preprocessing", "postprocessing"):
        if not isinstance(_instantiate(parser, part, config_name), Compose):
            raise BundleError(f"{config_name}: {part} must be a Compose")
    postprocessing = parser.get_parsed_content("postprocessing")
    if not any(isinstance(step, Invertd) for step in postprocessing.transforms):
        raise BundleError(
            f"{config_name}: postprocessing needs Invertd, else results miss the image's grid"
        )
    if parser.get("inferer") is not None:
        _instantiate(parser, "inferer", config_name)


def takes_support(bundle: Path) -> bool:
    """Return whether a bundle segments by the example of an annotated scan (one-shot).

    Args:
        bundle: Folder of the bundle.
    """
    return _read_config(bundle, "inference")[0].get("support_source") is not None


def training_problems(bundle: Path) -> list[str]:
    """Return what keeps MONAI Label from training the bundle; empty when nothing does.

    Args:
        bundle: Folder of the bundle.
    """
    try:
        parser, config_name = _read_config(bundle, "train")
    except BundleError as error:
        return [str(error)]
    problems = [
        f"{config_name}: the id {name} is missing" for name in TRAINING_IDS if name not in parser
    ]
    handlers = parser.get("train#handlers")
    if not isinstance(handlers, list) or not all(isinstance(item, dict) for item in handlers):
        problems.append(
            f"{config_name}: train#handlers must be a list of components written out in full, "
            "without '@' or '$' items"
        )
    return problems


def _check_metadata(path: Path) -> None:
    if not path.is_file():
        raise BundleError(f"{path.name} is missing in {path.parent}")
    try:
        formats = json.loads(path.read_text(encoding="utf-8"))["network_data_format"]
        (first_input, image), (first_output, pred) = (
            next(iter(formats[side].items())) for side in ("inputs", "outputs")
        )
        names = [
            pred["channel_def"][str(value)].lower() for value in range(len(pred["channel_def"]))
        ]
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise BundleError(
            f"{path.name}: network_data_format needs an input 'image' and an output 'pred' whose "
            f"channel_def names the label values 0, 1, ... ({type(error).__name__}: {error})"
        ) from error
    if (first_input, first_output) != ("image", "pred"):
        raise BundleError(
            f"{path.name}: the first input must be 'image' and the first output 'pred', "
            f"not '{first_input}' and '{first_output}'"
        )
    if not image.get("spatial_shape"):
        raise BundleError(f"{path.name}: the input 'image' needs spatial_shape")
    if names[:1] != ["background"] or len(set(names)) != len(names):
        raise BundleError(
            f"{path.name}: channel_def must start with background and repeat no name: {names}"
        )


def _read_config(bundle: Path, stem: str) -> tuple[ConfigParser, str]:
    """Return the configuration that MONAI Label reads (JSON first) and its file name."""
    for name in (f"{stem}.json", f"{stem}.yaml"):
        path = bundle / "configs" / name
        if path.is_file():
            parser = ConfigParser()
            try:
                parser.read_config(str(path))
            except Exception as error:
                raise BundleError(f"{name} cannot be read: {_reason(error)}") from error
            parser["bundle_root"] = str(bundle)
            return parser, name
    raise BundleError(f"configs/{stem}.yaml is missing")


def _instantiate(parser: ConfigParser, name: str, config_name: str) -> Any:
    if parser.get(name) is None:
        raise BundleError(f"{config_name}: the id {name} is missing")
    try:
        return parser.get_parsed_content(name, instantiate=True)
    except Exception as error:
        raise BundleError(f"{config_name}: {name} cannot be built: {_reason(error)}") from error


def _check_weights(models: Path, network: torch.nn.Module) -> None:
    path = models / "model.pt"
    if not path.is_file():
        raise BundleError("models/model.pt is missing; train the bundle first (docs/README.md)")
    shorter = [item.name for item in models.glob("*.pt") if len(item.name) < len(path.name)]
    if shorter:
        raise BundleError(
            f"MONAI Label would load models/{shorter[0]} instead of model.pt; move it away"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("model", state)
        network.load_state_dict(state)
    except Exception as error:
        raise BundleError(f"models/model.pt does not fit network_def: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return the first lines of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"
