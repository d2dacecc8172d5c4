"""Whether the runs of a study can begin: told before the first one, not hours later."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from medseg_kit.data.datalist import DATALIST_NAME, site_folders
from medseg_kit.study.labels import labelled_subjects
from medseg_kit.study.spec import Job, RunSpec
from medseg_kit.typing import UserError

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

TRAINING = {"train": ["train.yaml"], "federate": ["train.yaml", "federated.yaml"]}


def check_runs(runs: Iterable[RunSpec], *, local_steps: int | None = None) -> None:
    """Compose the configurations of runs, with their overlays and overrides, without building them.

    Args:
        runs: Configurations of a study.
        local_steps: Budget that the study states.

    Raises:
        UserError: Names the run, and the file, id or path that does not exist, or the steps that
            its configuration makes instead of the budget.
    """
    from medseg_kit.bundle.config import load_config

    for run in runs:
        if run.bundle is None or run.mode == "command":
            continue
        try:
            if run.mode in TRAINING:
                files = [*TRAINING[run.mode], *run.overlays]
                training = load_config(run.bundle, files, overrides={**run.overrides, **run.paths})
                if run.mode == "train":
                    _check_steps(training, local_steps)
            files = ["inference.yaml", *run.inference.get("overlays", ())]
            load_config(run.bundle, files, overrides=run.inference.get("overrides", {}))
        except UserError as error:
            raise UserError(f"run {run.name}: {error}") from error
        for name, path in run.paths.items():
            if not Path(path).exists():
                raise UserError(f"run {run.name}: {path} ({name}) does not exist; make it first")


def check_budgets(jobs: Iterable[Job]) -> None:
    """Compare the label budgets of runs with the labels that their data have.

    Args:
        jobs: Runs of a study, with their budgets.

    Raises:
        UserError: Names the run, the budget, and the data that have fewer labelled patients.
    """
    for job in jobs:
        if job.label_budget is None:
            continue
        folders = [Path(job.spec.data)] if job.spec.data is not None else []
        if job.spec.sites is not None:
            folders += site_folders(job.spec.sites).values()
        for folder in folders:
            if not (folder / DATALIST_NAME).is_file():
                continue  # a folder of sites
            try:
                labelled_subjects(folder, job.label_budget)
            except UserError as error:
                raise UserError(f"run {job.name}: {error}") from error


def _check_steps(training: ConfigParser, local_steps: int | None) -> None:
    """Compare the steps of a training with the budget, where the configuration has them as numbers.

    Raises:
        UserError: If they differ.
    """
    epochs, steps = (training.get(key) for key in ("train#trainer#max_epochs", "steps_per_epoch"))
    if local_steps is None or not isinstance(epochs, int) or not isinstance(steps, int):
        return
    if epochs * steps != local_steps:
        raise UserError(
            f"it trains {epochs} epochs of {steps} steps, the study's budget is {local_steps}"
            " steps: change train#trainer#max_epochs or steps_per_epoch in its `overrides`, or the"
            " budget"
        )
