"""Whether the runs of a study can begin: told before the first one, not hours later."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medseg_kit.study.spec import RunSpec
from medseg_kit.typing import UserError

TRAINING = {"train": ["train.yaml"], "federate": ["train.yaml", "federated.yaml"]}


def check_runs(runs: Iterable[RunSpec]) -> None:
    """Compose the configurations of runs, with their overlays and overrides, without building them.

    Args:
        runs: Configurations of a study.

    Raises:
        UserError: Names the run, and the file, id or path that does not exist.
    """
    from medseg_kit.bundle.config import load_config

    for run in runs:
        if run.bundle is None or run.mode == "command":
            continue
        try:
            if run.mode in TRAINING:
                files = [*TRAINING[run.mode], *run.overlays]
                load_config(run.bundle, files, overrides={**run.overrides, **run.paths})
            files = ["inference.yaml", *run.inference.get("overlays", ())]
            load_config(run.bundle, files, overrides=run.inference.get("overrides", {}))
        except UserError as error:
            raise UserError(f"run {run.name}: {error}") from error
        for name, path in run.paths.items():
            if not Path(path).exists():
                raise UserError(f"run {run.name}: {path} ({name}) does not exist; make it first")
