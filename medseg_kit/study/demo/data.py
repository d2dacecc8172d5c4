"""The patients of a demonstration: partly labelled sites, and fully labelled outside patients."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from medseg_kit.bundle.config import load_config
from medseg_kit.data.datalist import read_datalist, site_folders
from medseg_kit.data.phantoms import OUTSIDE, write_phantom_sites
from medseg_kit.data.plan import make_plan
from medseg_kit.data.prepare import prepare_dataset
from medseg_kit.study.demo.settings import Settings
from medseg_kit.typing import UserError

DATA_VARIABLE = "MEDSEG_DATA"


@dataclass(frozen=True)
class DemoData:
    """Where the patients of a demonstration lie.

    Attributes:
        sites_dir: Folder with one prepared data set a site.
        outside_dir: Fully labelled prepared data set whose section "test" no training sees.
    """

    sites_dir: Path
    outside_dir: Path

    @property
    def sites(self) -> dict[str, Path]:
        """Site name to its folder."""
        return site_folders(self.sites_dir)

    def describe(self) -> list[str]:
        """Return one line a site, and one for the outside patients."""
        lines = []
        for name, folder in self.sites.items():
            content = read_datalist(folder)
            counts = f"{len(content['training'])} training, {len(content['validation'])} validation"
            lines.append(f"{name}: labels {', '.join(content['annotated'])} only; {counts}")
        content = read_datalist(self.outside_dir)
        labels = ", ".join(content["annotated"])
        return [*lines, f"outside: labels {labels}; {len(content['test'])} test"]


def make_data(settings: Settings, folder: Path, source: Path | None, seed: int) -> DemoData:
    """Write synthetic sites and a synthetic outside site, or prepare the real volumes.

    Args:
        settings: The demonstration.
        folder: Folder to make.
        source: Folder that holds Task04_Hippocampus, None for synthetic patients.
        seed: Seed of the synthetic patients.

    Raises:
        UserError: When real volumes are missing, or a check of them fails.
    """
    if source is not None:
        return _prepare_hippocampus(source, folder)
    parser = load_config(settings.bundle, overrides=settings.inference_overrides())
    organs = parser.get_parsed_content("organs")
    write_phantom_sites(
        folder,
        organs=organs,
        patients_per_site=settings.patients_per_site,
        num_outside=settings.num_outside,
        size=settings.size,
        seed=seed,
    )
    return DemoData(folder / "sites", folder / OUTSIDE)


def real_data_folder(variable: str = DATA_VARIABLE) -> Path:
    """Return the folder of real data that the environment names.

    Args:
        variable: Name of the environment variable.

    Raises:
        UserError: When the variable is not set or names no folder.
    """
    named = os.environ.get(variable)
    if not named:
        raise UserError(
            f"{variable} is not set: run it as `{variable}=FOLDER scripts/demo.sh --data "
            "hippocampus`, where FOLDER holds Task04_Hippocampus of the Medical Segmentation "
            "Decathlon"
        )
    folder = Path(named).absolute()
    if not (folder / "Task04_Hippocampus").is_dir():
        raise UserError(
            f"{variable}={named} holds no folder Task04_Hippocampus; download it from "
            f"http://medicaldecathlon.com and set {variable} to the folder that holds it"
        )
    return folder


def _prepare_hippocampus(source: Path, folder: Path) -> DemoData:
    plan = make_plan("hippocampus", source=source, sites="two_parts")
    prepare_dataset(plan, folder, progress=True)
    return DemoData(folder / "sites", folder)
