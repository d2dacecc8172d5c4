"""Runs a study's jobs, each in its own process; a finished one is never repeated."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from medseg_kit import __version__
from medseg_kit.bundle.paths import resolve_bundle
from medseg_kit.files import write_json, write_text
from medseg_kit.registration.layout import registration_digest
from medseg_kit.study.checks import TRAINING, check_budgets, check_runs
from medseg_kit.study.labels import data_digest
from medseg_kit.study.spec import Job, RunSpec, Study, jobs
from medseg_kit.study.stages import discard_training, existing_weights
from medseg_kit.typing import PathLike, UserError

logger = logging.getLogger(__name__)

RECORDS = "records.jsonl"
EARLIER = "records.earlier.jsonl"


def run_study(
    study: Study,
    out: PathLike,
    *,
    parallel: int = 1,
    on_job: Callable[[Job, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Do all runs that are not finished and return the records of all.

    Writes `out/runs/<job>/record.json` and log.txt per run, and `out/records.jsonl` and
    `out/study.json` for all. A run whose configuration, data or package version changed is done
    again, and its old record kept in `out/records.earlier.jsonl`. Records name no place of this
    machine: `out/records.jsonl` copied to another one, with the same data prepared, counts there as
    finished, and so it does when `out/runs` is removed.

    Args:
        study: What to run.
        out: Output folder; the same one continues a study that was stopped.
        parallel: Runs at the same time.
        on_job: Called with each job and "finished before", "started", "done" or "failed", perhaps
            from several threads.

    Raises:
        UserError: If data, or a file, an id or a path of a run are missing, or, after all other
            runs, if runs failed; names them.
    """
    folder = Path(out).absolute()
    report = on_job or (lambda job, state: logger.info("%s: %s", job.name, state))
    plans = {job.name: describe_job(study, job) for job in jobs(study)}
    write_json(folder / "study.json", asdict(study))
    done = finished_records(folder, {name: plan["identity"] for name, plan in plans.items()})
    waiting = [job for job in jobs(study) if job.name not in done]
    specs = {job.spec.name: job.spec for job in waiting}
    check_runs(specs.values(), local_steps=study.budget.get("local_steps"))
    check_budgets(waiting)
    keep_earlier(folder, done.values())
    failures: dict[str, str] = {}
    recording = threading.Lock()

    def do(job: Job) -> None:
        plan = plans[job.name]
        if job.weights:  # which another run of this study may have made, or made anew, by now
            plan = describe_job(study, job)
            finished = finished_records(folder, {job.name: plan["identity"]})
            with recording:
                done.pop(job.name, None)
                done.update(finished)
        if job.name in done:
            report(job, "finished before")
            return
        report(job, "started")
        record, problem = run_job(folder / "runs" / job.name, plan)
        report(job, "failed" if record is None else "done")
        with recording:
            if record is None:
                failures[job.name] = problem
                return
            done[job.name] = record
            write_records(folder, [done[name] for name in plans if name in done])

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(do, jobs(study)))
    write_records(folder, [done[name] for name in plans if name in done])
    if failures:
        problems = "; ".join(f"{name}: {failures[name]}" for name in plans if name in failures)
        raise UserError(
            f"{len(failures)} of {len(plans)} runs failed: {problems}. "
            "The others are recorded; the same command tries these again"
        )
    return [done[name] for name in plans]


def write_records(folder: Path, records: list[dict[str, Any]]) -> None:
    """Write records.jsonl, one record a line."""
    lines = (json.dumps(item, sort_keys=True, allow_nan=False) + "\n" for item in records)
    write_text(folder / RECORDS, "".join(lines))


def keep_earlier(folder: Path, done: Iterable[dict[str, Any]]) -> None:
    """Move records that do not count any more to records.earlier.jsonl, and say so.

    Args:
        folder: The study's folder.
        done: Records that count.
    """
    path, earlier = folder / RECORDS, folder / EARLIER
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    counting = {record["identity"] for record in done}
    kept = earlier.read_text(encoding="utf-8").splitlines() if earlier.is_file() else []
    old = [line for line in lines if json.loads(line)["identity"] not in counting]
    if old:
        write_text(earlier, "".join(f"{line}\n" for line in dict.fromkeys([*kept, *old])))
        logger.warning(
            "%d records are of another configuration, data set or version than the study's: they"
            " are kept in %s and do not count",
            len(old),
            earlier,
        )


def finished_records(folder: Path, identities: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return job -> record of the runs that are complete, from their folders or records.jsonl."""
    path = folder / RECORDS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    earlier = {record["identity"]: record for record in map(json.loads, lines)}
    found = {
        name: finished_record(folder / "runs" / name, identity) or earlier.get(identity)
        for name, identity in identities.items()
    }
    return {name: record for name, record in found.items() if record is not None}


def describe_job(study: Study, job: Job) -> dict[str, Any]:
    """Return everything that a run depends on, with the digest that identifies it.

    The digest covers the run's entries, what the configuration files say that it uses (not their
    comments), the sums of its data and of its registration, the weights that it evaluates and
    other files that it names, and the package's version.

    Raises:
        UserError: If the bundle or a data set does not exist.
    """
    spec = job.spec
    folders = [item for item in (spec.data, spec.sites) if item is not None]
    plan: dict[str, Any] = {
        "study": study.name,
        "configuration": study.portable(spec),
        "seed": job.seed,
        "label_budget": job.label_budget,
        "label_order": job.label_order,
        "test": {**study.test, "data": study.relative(study.test["data"])},
        "policy": study.policy,
        "checkpoint_rule": study.checkpoint_rule,
        "data_sha256": {
            "training": [data_digest(item) for item in folders],
            "test": data_digest(study.test["data"]),
            **{
                name: registration_digest(path, job.label_budget)
                for name, path in spec.paths.items()
                if name == "registration"
            },
        },
    }
    digest = hashlib.sha256(json.dumps({**plan, "package": __version__}, sort_keys=True).encode())
    for path in config_files(spec):
        if path.is_file():
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            digest.update(json.dumps(content, sort_keys=True, default=str).encode())
    for path in _files_used(job):
        digest.update(path.read_bytes())
    here = {"spec": asdict(spec), "test": dict(study.test), "identity": digest.hexdigest()}
    return {**plan, **here}


def _files_used(job: Job) -> list[Path]:
    """Return the files beside configuration and data that a run's result depends on."""
    named = [Path(path) for name, path in job.spec.paths.items() if name != "registration"]
    weights = existing_weights(job)["weights"] if job.spec.mode == "evaluate" else None
    return [path for path in (*named, *([Path(weights)] if weights else ())) if path.is_file()]


def config_files(spec: RunSpec) -> list[Path]:
    """Return the configuration files of a bundle that a run uses."""
    if spec.bundle is None:
        return []
    names = [*TRAINING.get(spec.mode, []), *spec.overlays, "inference.yaml"]
    folder = resolve_bundle(spec.bundle) / "configs"
    return [folder / name for name in [*names, *spec.inference.get("overlays", ())]]


def finished_record(run_dir: Path, identity: str) -> dict[str, Any] | None:
    """Return a run's record if it is complete and of this very configuration and data."""
    path = run_dir / "record.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record if record["identity"] == identity else None


def run_job(run_dir: Path, plan: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Do one run in a new process; return its record, or None and what went wrong."""
    job_file = run_dir / "job.json"
    if job_file.is_file() and _identity(job_file) != plan["identity"]:
        discard_training(run_dir)
    write_json(job_file, plan)
    error_file = run_dir / "error.txt"
    error_file.unlink(missing_ok=True)
    words = [sys.executable, "-m", "medseg_kit.study.worker", str(run_dir)]
    with (
        (run_dir / "log.txt").open("ab") as log,
        subprocess.Popen(
            words,
            stdin=subprocess.PIPE,  # the worker ends when this end closes
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        code = process.wait()
    record = finished_record(run_dir, plan["identity"])
    if code == 0 and record is not None:
        return record, ""
    if error_file.is_file():
        return None, error_file.read_text(encoding="utf-8")
    return None, f"its process ended with code {code}; see {run_dir / 'log.txt'}"


def _identity(job_file: Path) -> str:
    return str(json.loads(job_file.read_text(encoding="utf-8"))["identity"])
