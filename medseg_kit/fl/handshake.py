"""The handshake before round 1: do site and server run the same bundle in the same way?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from medseg_kit import __version__

COMPARED = {
    "bundle": "install the same bundle",
    "bundle_version": "install the same version of the bundle",
    "config": "the configuration files differ; install the same bundle and name the same method",
    "label_map": "the organs or their order differ; prepare the data with the bundle's view",
}


def describe_bundle(
    root: Path, files: Sequence[str], *, overrides: Mapping[str, Any], organs: Sequence[str]
) -> dict[str, str]:
    """Return what both sides of a federation must agree on, as short texts.

    Args:
        root: Folder of the installed bundle.
        files: Its configuration files, as in `config_files`.
        overrides: Values by id that hold for the whole federation (not a site's own).
        organs: Organs in label order.
    """
    metadata = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
    content = ConfigParser.load_config_files([str(root / name) for name in files])
    return {
        "bundle": root.name,
        "bundle_version": str(metadata.get("version", "unknown")),
        "config": text_digest({"files": content, "overrides": dict(overrides)}),
        "label_map": text_digest(list(organs)),
        "package": __version__,
    }


def config_files(method: str | None) -> list[str]:
    """Return the files of a federated configuration, relative to the bundle, first to last.

    >>> config_files("condistfl,fedprox")[2:]
    ['configs/methods/condistfl.yaml', 'configs/methods/fedprox.yaml']
    """
    names = [name.strip() for name in method.split(",")] if method else []
    overlays = [f"configs/methods/{name}.yaml" for name in names]
    return ["configs/train.yaml", "configs/federated.yaml", *overlays]


def text_digest(content: Any) -> str:
    """Return 16 hexadecimal digits of the sha256 of a JSON value."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def disagreement(
    server: Mapping[str, str],
    global_keys: Mapping[str, str],
    site: str,
    hello: Mapping[str, Any],
) -> str | None:
    """Return in what a site differs from the server, naming both sides; None if in nothing.

    Args:
        server: What `describe_bundle` returned for the server.
        global_keys: Key to dtype and shape of the global network.
        site: Name of the site.
        hello: The content of its handshake.
    """
    for field, fix in COMPARED.items():
        theirs = hello.get(field, "nothing")
        if theirs != server[field]:
            return f"site {site!r} has {field} {theirs!r}, the server has {server[field]!r}: {fix}"
    keys: Mapping[str, str] = hello.get("keys", {})
    if not keys:
        return f"site {site!r} exchanges no weights, the server expects some of {len(global_keys)}"
    for key in sorted(keys):
        if keys[key] != global_keys.get(key):
            return (
                f"site {site!r} has the key {key} as {keys[key]}, the server has it as "
                f"{global_keys.get(key, 'nothing')}: the networks differ"
            )
    for count in ("num_training", "num_samples"):
        number = hello.get(count)
        if not isinstance(number, int) or number < 1:
            return f"site {site!r} has {number!r} as {count}, the server expects at least 1"
    return None
