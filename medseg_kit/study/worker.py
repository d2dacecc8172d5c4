"""One run of a study in a process of its own; ends when the study that started it ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from medseg_kit.bundle.errors import user_message
from medseg_kit.files import only_process, write_json
from medseg_kit.study import stages
from medseg_kit.study.cost import describe_cost
from medseg_kit.study.environment import describe_hardware, describe_versions
from medseg_kit.study.spec import Job, RunSpec


def main(run_dir: Path) -> int:
    """Do the run that job.json describes and write record.json; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with only_process(run_dir):
            write_json(run_dir / "record.json", execute(run_dir))
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        (run_dir / "error.txt").write_text(message, encoding="utf-8")
        return 1
    return 0


def execute(run_dir: Path) -> dict[str, Any]:
    """Return the record of a run after all its stages.

    Raises:
        UserError: If a stage cannot be done.
    """
    plan = json.loads((run_dir / "job.json").read_text(encoding="utf-8"))
    spec = plan.pop("spec")
    for key in ("overlays", "command", "organs"):
        spec[key] = None if spec[key] is None else tuple(spec[key])
    job = Job(RunSpec(**spec), plan["seed"], plan["label_budget"], plan["label_order"])
    outcome = stages.make_weights(job, run_dir, checkpoint_rule=plan["checkpoint_rule"])
    started = time.perf_counter()
    stages.predict(job, run_dir / "predictions", weights=outcome["weights"], test=plan["test"])
    predicted = time.perf_counter()
    cases = stages.evaluate(job, run_dir / "predictions", test=plan["test"], policy=plan["policy"])
    seconds = {
        "train": outcome["seconds"],
        "predict": round(predicted - started, 3),
        "evaluate": round(time.perf_counter() - predicted, 3),
    }
    return {
        "schema": 1,
        "run": job.spec.name,
        "method": job.spec.method,
        "mode": job.spec.mode,
        "seed": job.seed,
        "label_budget": job.label_budget,
        "label_order": job.label_order,
        **{key: plan[key] for key in ("configuration", "identity", "data_sha256", "policy")},
        "checkpoint_rule": {"stated": plan["checkpoint_rule"], "applied": outcome["selection"]},
        "local_steps": outcome["local_steps"],
        "options": outcome.get("options"),
        "seconds": seconds,
        "cost": describe_cost(
            job,
            seconds=seconds,
            local_steps=outcome["local_steps"],
            num_cases=len({row["case"] for row in cases}),
        ),
        "hardware": describe_hardware(),
        "versions": describe_versions(),
        "curves": outcome["curves"],
        "pseudo_labels": outcome.get("pseudo_labels", []),
        "cases": cases,
    }


def _end_with_parent() -> None:
    """End this process and what it started when the study ends, also when that is killed.

    The study holds the other end of the standard input; the worker leads a session of its own.
    """
    while os.read(sys.stdin.fileno(), 1):  # unbuffered: the interpreter may end meanwhile
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
