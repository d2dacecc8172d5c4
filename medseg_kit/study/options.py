"""What the sites of a federation train with, those options left at their defaults included."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg_kit.bundle.config import load_config
from medseg_kit.bundle.options import describe_component, describe_components

if TYPE_CHECKING:
    from medseg_kit.fl.plan import Options


def describe_federation(bundle: str, folder: Path, options: Options) -> dict[str, Any]:
    """Return what the sites of a federation train with, and how they are averaged.

    The number of planned steps, which differs from site to site, is left out.

    Args:
        bundle: Name or path of the bundle.
        folder: Prepared data set of one site; its own overrides hold.
        options: Those of the federation.
    """
    from medseg_kit.fl.handshake import config_files
    from medseg_kit.fl.site import read_site_file

    files = [name.removeprefix("configs/") for name in config_files(options.method)]
    overrides = {**options.overrides, **read_site_file(folder), "dataset_dir": str(folder)}
    if options.rounds is not None:
        overrides["num_rounds"] = options.rounds
    parser = load_config(bundle, files, overrides=overrides)
    if "heads" in parser:
        parser["heads"] = "@organs"  # those of all sites
    parser["train"]["step"].pop("total_steps", None)
    federation = ("strategy", "num_rounds", "local_epochs", "client_state")
    return {
        **describe_component(parser, "train#step"),
        **describe_components(parser),
        **{name: describe_component(parser, name) for name in federation if name in parser},
    }
