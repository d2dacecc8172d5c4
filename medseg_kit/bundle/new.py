"""A new bundle from an existing one: its configurations with another name and other organs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg_kit.bundle.paths import resolve_bundle
from medseg_kit.typing import PathLike, UserError

_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+){2,}")
_ORGANS = re.compile(r"^organs: \[.*\]$", re.MULTILINE)
_REGIONS = re.compile(r"^num_regions: \[.*?\]", re.MULTILINE)
_OPEN = "to be written"

_README = """\
# {name}

{task}. This bundle has no trained weights yet.

Train on a prepared data set or a site folder, then evaluate and predict:

    python -m monai.bundle run --config_file configs/train.yaml --dataset_dir DATA --output_dir RUN
    medseg bundle pack {name} --weights RUN/model.pt
    medseg bundle verify {name}
    medseg predict {name} -i IMAGES -o OUT

After training, delete `"trained_weights": false` from `configs/metadata.json` and state here the
command, data, seed, hardware and numbers.
"""


def write_bundle(name: str, organs: Sequence[str], *, like: PathLike, folder: PathLike) -> Path:
    """Write a bundle without weights and return its folder.

    The configurations are those of an existing bundle under the new name and with the new organs;
    metadata, README and data licence start empty of claims.

    Args:
        name: Folder name, ``<anatomy>_<modality>_<method>`` in lower case.
        organs: Organs in label order, lower case.
        like: Bundle whose configurations to start from.
        folder: Folder that holds the bundles.

    Raises:
        UserError: For a name or organ list that does not fit, or a folder that exists already.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"'{name}': a bundle is called <anatomy>_<modality>_<method>, lower case")
    wrong = [organ for organ in organs if organ != organ.lower() or organ == "background"]
    if not organs or wrong or len(set(organs)) < len(organs):
        raise UserError(f"organs {list(organs)}: name each once, lower case, without background")
    source, target = resolve_bundle(like), Path(folder) / name
    if target.exists():
        raise UserError(f"{target} exists already; choose another name or remove it")
    (target / "models").mkdir(parents=True)
    (target / "docs").mkdir()
    shutil.copy(source / "LICENSE", target / "LICENSE")
    for path in sorted((source / "configs").rglob("*")):
        copy = target / "configs" / path.relative_to(source / "configs")
        if path.suffix in (".yaml", ".conf"):
            copy.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8").replace(source.name, name)
            text = _ORGANS.sub(f"organs: [{', '.join(organs)}]", text)
            text = _REGIONS.sub(f"num_regions: [{', '.join(['null'] * len(organs))}]", text)
            copy.write_text(text, encoding="utf-8")
    template = json.loads((source / "configs" / "metadata.json").read_text(encoding="utf-8"))
    metadata = _fresh_metadata(template, organs)
    text = json.dumps(metadata, indent=4) + "\n"
    (target / "configs" / "metadata.json").write_text(text, encoding="utf-8")
    readme = _README.format(name=name, task=metadata["task"])
    (target / "docs" / "README.md").write_text(readme, encoding="utf-8")
    license_text = "No data has been used yet. Name each training data set and its licence here.\n"
    (target / "docs" / "data_license.txt").write_text(license_text, encoding="utf-8")
    return target


def _fresh_metadata(template: dict[str, Any], organs: Sequence[str]) -> dict[str, Any]:
    """Return metadata that keeps the technical fields of a template and drops its claims."""
    kept = (
        "schema",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "required_packages_version",
        "supported_apps",
        "copyright",
        "data_type",
        "network_data_format",
    )
    metadata = {key: template[key] for key in kept}
    pred = metadata["network_data_format"]["outputs"]["pred"]
    names = ["background", *organs]
    pred["num_channels"] = len(names)
    pred["channel_def"] = {str(value): organ for value, organ in enumerate(names)}
    return {
        "version": "0.0.1",
        "changelog": {"0.0.1": "start"},
        "name": f"Segmentation of {', '.join(organs)}",
        "task": f"Segmentation of {', '.join(organs)}",
        "description": _OPEN,
        "authors": _OPEN,
        "data_source": _OPEN,
        "intended_use": "Research only; not for clinical use",
        "eval_metrics": {},
        "trained_weights": False,
        **metadata,
    }
