"""Writes the NVIDIA FLARE job of a federated bundle, and runs it in FLARE's simulator."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.job_config.api import FedJob
from tqdm import tqdm

from medseg_kit.bundle.paths import resolve_bundle
from medseg_kit.data.datalist import site_folders
from medseg_kit.files import write_json
from medseg_kit.fl.adapters.flare.controller import ERROR_FILE, FederationController
from medseg_kit.fl.adapters.flare.exchange import scalar_overrides
from medseg_kit.fl.adapters.flare.executor import (
    SITE_FILE_NAME,
    SITE_FILES_VARIABLE,
    SiteExecutor,
)
from medseg_kit.fl.ledger import read_ledger
from medseg_kit.fl.plan import Options, read_plan
from medseg_kit.fl.site import read_site_file
from medseg_kit.fl.store import IDENTITY_FILE, ServerStore
from medseg_kit.typing import PathLike, UserError

# what an administrator allows: these classes of the installed package, none of FLARE's
CLASSES = [f"{kind.__module__}.{kind.__name__}" for kind in (FederationController, SiteExecutor)]
SITE_FILE = f"local/{SITE_FILE_NAME}"  # in the site's FLARE workspace
TASK_REQUEST_INTERVAL_S = 0.1  # FLARE's 2 s dominate small rounds
SIMULATOR = "nvflare.private.fed.app.simulator.simulator"


def make_job(
    bundle: str,
    options: Options,
    *,
    sites: list[str] | None = None,
    out: str = "",
    task_timeout_s: int = 0,
) -> FedJob:
    """Return the job of a federation; it holds no code and no path of a site.

    Args:
        bundle: Name of the bundle that server and sites have installed, or its folder at the
            server; sites get its name.
        options: The user's decisions.
        sites: Names of the sites; those connected at the start if None.
        out: Output folder at the server; in the job's run folder if empty.
        task_timeout_s: Longest wait for the answers to one request; 0 waits for ever.

    Raises:
        UserError: If an override is more than a scalar.
    """
    overrides = scalar_overrides(options.overrides)
    # FLARE begins with that many sites and the controller counts them in every round
    quorum = options.quorum or (len(sites) // 2 + 1 if sites else 1)
    job = FedJob(name=Path(bundle).name, min_clients=quorum)
    job.set_app_packages(["medseg_kit"])  # installed at the sites, never shipped
    chosen = {
        "rounds": options.rounds,
        "method": options.method,
        "seed": options.seed,
        "overrides": overrides,
        "quorum": options.quorum,
        "min_cases": options.min_cases,
    }
    if options.initial_weights is not None:
        chosen["initial_weights"] = os.fspath(options.initial_weights)
    controller = FederationController(
        bundle=bundle, options=chosen, sites=sites, out=out, task_timeout_s=task_timeout_s
    )
    job.to_server(controller)
    job.to_server({"server": {"task_request_interval": TASK_REQUEST_INTERVAL_S}})
    executor = SiteExecutor(
        bundle=Path(bundle).name,
        seed=options.seed,
        method=options.method or "",
        overrides=overrides,
    )
    job.to_clients(executor, tasks=["train"])
    return job


def export(
    bundle: PathLike,
    out: PathLike,
    *,
    options: Options | None = None,
    sites: list[str] | None = None,
    server_out: str = "",
    task_timeout_s: int = 0,
) -> Path:
    """Write the job folder for real sites and return it.

    Args:
        bundle: Path or name of the bundle; the job keeps its name only.
        out: Folder for the job.
        options: The user's decisions.
        sites: Names of the sites; those connected at the start if None.
        server_out: Folder at the server, from which a job that is submitted again continues; a
            new one in the job's run folder if empty.
        task_timeout_s: As in `make_job`.

    Raises:
        UserError: If bundle or options do not fit together, or ``out`` exists already.
    """
    options = options or Options()
    if options.initial_weights is not None:
        raise UserError("an exported job starts from random weights: drop --initial_weights")
    name = read_plan(bundle, options).bundle.name
    target = Path(out).absolute()
    if target.exists():
        raise UserError(f"{target} exists already; give another --out")
    temporary = target.parent / f".{target.name}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    job = make_job(name, options, sites=sites, out=server_out, task_timeout_s=task_timeout_s)
    job.export_job(str(temporary))
    (temporary / name).replace(target)
    temporary.rmdir()
    return target


def simulate(
    bundle: PathLike,
    sites: PathLike | Mapping[str, Path],
    out: PathLike,
    *,
    options: Options | None = None,
    resume: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Run a federation in FLARE's simulator, one process per site, and return its summary.

    Args:
        bundle: Path or name of the bundle.
        sites: Folder of site folders, or site name to folder.
        out: Output folder, as in `medseg_kit.fl.simulation.simulate`.
        options: The user's decisions.
        resume: Continue the federation in ``out``, if any.
        progress: Show a progress bar.

    Raises:
        UserError: If the rounds did not complete; FLARE itself may report success then.
    """
    options = options or Options()
    folders = dict(sites) if isinstance(sites, Mapping) else site_folders(sites)
    plan, root, folder = read_plan(bundle, options), resolve_bundle(bundle), Path(out).absolute()
    if not resume:
        (folder / IDENTITY_FILE).unlink(missing_ok=True)
    work = folder / "flare"
    shutil.rmtree(work, ignore_errors=True)
    for name, dataset_dir in folders.items():
        content = {
            "dataset_dir": str(Path(dataset_dir).absolute()),
            "bundle": str(root),
            "output_dir": str(folder / "sites" / name),
            "min_cases": options.min_cases,
            "overrides": read_site_file(Path(dataset_dir)),
        }
        path = work / "sites" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    job = make_job(
        str(root),
        options,
        sites=sorted(folders),
        out=str(folder),
    )
    allowed = [*DEFAULT_CLASS_ALLOW_LIST, *CLASSES]
    write_json(work / "workspace" / "local" / "resources.json", {"class_allow_list": allowed})
    job.export_job(str(work / "job"))
    log = work / "simulator.log"
    code = _run_simulator(work, sorted(folders), folder, log, plan.num_rounds if progress else 0)
    return _verified_summary(folder, plan.num_rounds, code, log)


def _run_simulator(work: Path, names: list[str], out: Path, log: Path, rounds: int) -> int:
    """Run the simulator in its own process; threads must equal the number of sites."""
    (job,) = (work / "job").iterdir()
    command = [sys.executable, "-m", SIMULATOR, str(job), "-w", str(work / "workspace")]
    command += ["-c", ",".join(names), "-t", str(len(names))]
    environment = {**os.environ, SITE_FILES_VARIABLE: str(work / "sites" / "{site}.yaml")}
    with (
        log.open("w", encoding="utf-8") as stream,
        subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, cwd=work, env=environment
        ) as process,
        tqdm(total=rounds, unit="round", disable=not rounds) as bar,
    ):
        while process.poll() is None:
            time.sleep(0.5)
            completed = ServerStore(out).completed()
            if completed > bar.n:
                bar.update(completed - bar.n)
        return process.returncode


def _verified_summary(folder: Path, num_rounds: int, code: int, log: Path) -> dict[str, Any]:
    """Return the summary if all rounds are complete, whatever the simulator's exit code says."""
    error, summary = folder / ERROR_FILE, folder / "summary.json"
    if error.is_file():
        raise UserError(json.loads(error.read_text(encoding="utf-8"))["error"])
    completed = ServerStore(folder).completed()
    if completed < num_rounds or not summary.is_file():
        raise UserError(
            f"the simulator ended with code {code} after {completed} of {num_rounds} rounds "
            f"({len(read_ledger(folder / 'ledger.jsonl'))} ledger records); see {log}"
        )
    content: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    return content
