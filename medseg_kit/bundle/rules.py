"""What must hold in a bundle's files, metadata and configurations before anything is built.

Each function returns problems as text, an empty list when all is well. The rules are those of the
Model Zoo's checks, of MONAI Label 0.8 (which stops its whole server over one bad bundle) and of
this project (configuration only, overlays without list positions).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from monai.bundle import ConfigParser, ReferenceResolver
from monai.bundle.config_parser import CheckKeyDuplicatesYamlLoader
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from monai.bundle.utils import ID_SEP_KEY, MACRO_KEY
from monai.utils import BundleProperty, BundlePropertyConfig

from medseg_kit.bundle.targets import iterate_items

MAX_BYTES = 25 * 2**20  # the Model Zoo's limit for one file
REQUIRED_FILES = (
    "LICENSE",
    "configs/metadata.json",
    "configs/logging.conf",
    "configs/train.yaml",
    "configs/evaluate.yaml",
    "configs/inference.yaml",
    "docs/README.md",
    "docs/data_license.txt",
)
# MONAI Label takes such names for its other apps
_RESERVED_NAMES = ("detection", "classification", "deepedit", "deepgrow")
_LIST_POSITION = re.compile(r"(^|::|#)\d+(::|#|$)")
_FORBIDDEN_IN_INFERENCE = {
    "@_meta_": "MONAI Label does not load the metadata into the configuration",
    "@device.": "MONAI Label passes the device as a string; use $torch.device(@device)",
}


def check_files(root: Path, *, trained: bool) -> list[str]:
    """Return problems of the folder: name, missing files, code, sizes.

    Args:
        root: The bundle.
        trained: Whether the metadata promises trained weights.
    """
    problems = [f"{name}: missing" for name in REQUIRED_FILES if not (root / name).is_file()]
    problems += [
        f"folder name contains '{word}', which MONAI Label takes for another kind of app"
        for word in _RESERVED_NAMES
        if word in root.name
    ]
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.suffix in (".py", ".ipynb"):
            problems.append(f"{name}: a bundle is configuration only; move code to the package")
        if path.name in ("inference.json", "inference.yml"):
            problems.append(f"{name}: MONAI Label prefers or ignores it; use inference.yaml")
        if path.is_file() and not path.match("checkpoint*") and path.stat().st_size > MAX_BYTES:
            size = path.stat().st_size / 2**20
            problems.append(f"{name}: {size:.1f} MB, at most 25 MB a file")
    weights = root / "models" / "model.pt"
    if trained and not weights.is_file():
        problems.append(
            "models/model.pt: missing; train the bundle, "
            'or say "trained_weights": false in the metadata'
        )
    shorter = [
        path.name for path in weights.parent.glob("*.pt") if len(path.name) < len(weights.name)
    ]
    problems += [
        f"models/{name}: MONAI Label would load it instead of model.pt" for name in shorter
    ]
    return problems


def check_metadata(root: Path, organs: list[str] | None) -> list[str]:
    """Return problems of ``metadata.json``: schema, version, channels.

    Args:
        root: The bundle.
        organs: Organs of the inference configuration, in label order; None when it has no such id.
    """
    file = root / "configs" / "metadata.json"
    schema = resources.files("medseg_kit.bundle") / "schemas" / "metadata.json"
    validator = Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
    metadata = json.loads(file.read_text(encoding="utf-8"))
    errors = sorted(validator.iter_errors(metadata), key=lambda error: list(map(str, error.path)))
    if errors:
        return [
            f"metadata.json: {error.json_path.removeprefix('$.')}: {error.message}"[:300]
            for error in errors
        ]
    problems = []
    if metadata["version"] not in metadata["changelog"]:
        problems.append(f"metadata.json: version {metadata['version']} is not in the changelog")
    problems += _check_channels(metadata["network_data_format"], organs)
    return problems


def check_overlays(root: Path) -> list[str]:
    """Return problems of the YAML files: unreadable, or keys that address list positions."""
    problems = []
    for path in sorted((root / "configs").rglob("*.yaml")):
        name = path.relative_to(root)
        try:
            content = read_yaml(path)
        except (ValueError, yaml.YAMLError) as error:
            problems.append(f"{name}: {' '.join(str(error).split())}")
            continue
        problems += [
            f"{name}: key '{key}' addresses a list position; name the item instead"
            for key in content
            if _LIST_POSITION.search(str(key))
        ]
    return problems


def check_inference(config: Mapping[str, Any]) -> list[str]:
    """Return problems of the composed ``inference.yaml`` for MONAI's properties and MONAI Label."""
    problems = _missing_properties(config, InferProperties, "inference.yaml")
    if not isinstance(config.get("network_def"), Mapping):
        problems.append("inference.yaml: network_def must be a literal mapping")
    for key in ("preprocessing", "postprocessing"):
        if not isinstance(config.get(key), Mapping):
            problems.append(f"inference.yaml: {key} must be a mapping that makes a Compose")
    for identifier, value in iterate_strings({k: v for k, v in config.items() if k != "_meta_"}):
        problems += [
            f"inference.yaml: {identifier}: {reason}"
            for text, reason in _FORBIDDEN_IN_INFERENCE.items()
            if text in value
        ]
        if re.match(r"%[^@]*\.(ya?ml|json)", value) and not value.startswith("%/"):
            problems.append(
                f"inference.yaml: {identifier}: relative %files follow the working folder"
            )
    return problems


def check_training(config: Mapping[str, Any]) -> list[str]:
    """Return problems of the composed ``train.yaml`` for MONAI's properties, FL and MONAI Label."""
    problems = _missing_properties(config, TrainProperties, "train.yaml")
    train = config.get("train", {})
    if not isinstance(train.get("trainer", {}).get("max_epochs"), int):
        problems.append("train.yaml: train#trainer#max_epochs must be a literal number")
    handlers = train.get("handlers")
    if not isinstance(handlers, list) or not all(isinstance(item, Mapping) for item in handlers):
        problems.append("train.yaml: train#handlers must be a literal list of mappings")
    for identifier in ("network", "run", "initialize"):
        if identifier not in config:
            problems.append(f"train.yaml: id {identifier} is missing")
    if "data" not in config.get("validate", {}).get("dataset", {}):
        problems.append("train.yaml: id validate#dataset#data is missing")
    return problems


def check_references(config: Mapping[str, Any], name: str) -> list[str]:
    """Return the ``@id`` and ``%id`` references of a configuration that lead nowhere.

    Args:
        config: Composed configuration.
        name: What to call it in the messages.
    """
    parser = ConfigParser({**config})
    problems = []
    for identifier, value in iterate_strings({k: v for k, v in config.items() if k != "_meta_"}):
        text = parser.resolve_relative_ids(identifier, value)
        wanted = list(ReferenceResolver.match_refs_pattern(text))
        if text.startswith(MACRO_KEY):
            path, macro = ConfigParser.split_path_id(text[len(MACRO_KEY) :])
            wanted += [] if path else [macro]
        problems += [
            f"{name}: {identifier} refers to {reference}, which does not exist"
            for reference in wanted
            if reference not in parser
        ]
    return problems


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a configuration file's own content; a key that stands twice is a ValueError."""
    with path.open(encoding="utf-8") as file:
        content = yaml.load(file, CheckKeyDuplicatesYamlLoader)  # a SafeLoader  # noqa: S506
    if not isinstance(content, dict):
        raise ValueError("is no mapping")
    return content


def iterate_strings(content: Any) -> Iterator[tuple[str, str]]:
    """Yield the id and text of every string in a configuration."""
    return ((name, value) for name, value in iterate_items(content) if isinstance(value, str))


def _check_channels(formats: Mapping[str, Any], organs: list[str] | None) -> list[str]:
    inputs, outputs = formats["inputs"], formats["outputs"]
    problems = []
    if next(iter(inputs)) != "image" or next(iter(outputs)) != "pred":
        problems.append("metadata.json: the first input must be image and the first output pred")
    pred = outputs["pred"]
    names = {int(key): value for key, value in pred["channel_def"].items()}
    ordered = [names[key] for key in sorted(names)]
    if sorted(names) != list(range(len(names))):
        problems.append("metadata.json: channel_def of pred must count 0, 1, 2, ...")
    if ordered[0] != "background":
        problems.append(f"metadata.json: channel 0 of pred is '{ordered[0]}', not background")
    if len(set(ordered)) < len(ordered) or any(name != name.lower() for name in ordered):
        problems.append(f"metadata.json: channel names must be unique and lower case: {ordered}")
    if pred["num_channels"] != len(ordered):
        problems.append(
            f"metadata.json: pred has {pred['num_channels']} channels but {len(ordered)} names"
        )
    if organs is not None and ordered[1:] != organs:
        problems.append(f"metadata.json: channels {ordered[1:]} differ from the organs {organs}")
    return problems


def _missing_properties(
    config: Mapping[str, Any], properties: Mapping[str, Any], name: str
) -> list[str]:
    """Return MONAI's required ids that are absent, and optional ones under a wrong reference."""
    problems = []
    for property_name, item in {**properties, **MetaProperties}.items():
        identifier = item[BundlePropertyConfig.ID]
        present = _lookup(config, identifier) is not None
        if item[BundleProperty.REQUIRED] and not present:
            problems.append(f"{name}: id {identifier} (property {property_name}) is missing")
        reference = _lookup(config, item.get(BundlePropertyConfig.REF_ID) or "")
        wanted = f"@{identifier}"
        direct = isinstance(reference, str) and reference.startswith("@")
        if direct and reference.replace("#", ID_SEP_KEY) != wanted:
            problems.append(f"{name}: {reference} must be {wanted} (property {property_name})")
    return problems


def _lookup(config: Mapping[str, Any], identifier: str) -> Any:
    value: Any = config if identifier else None
    for key in identifier.split(ID_SEP_KEY) if identifier else ():
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
