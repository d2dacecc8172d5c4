"""The stages of one run: train or federate, predict the test cases, evaluate."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg_kit.bundle.options import describe_components, options_of
from medseg_kit.data.datalist import read_datalist
from medseg_kit.files import write_json
from medseg_kit.report.ledger import metric_curves, of_type, read_ledger
from medseg_kit.study.evaluation import evaluate_predictions
from medseg_kit.study.labels import labelled_subjects, limit_labels
from medseg_kit.study.options import describe_federation
from medseg_kit.study.references import find_references
from medseg_kit.study.spec import Job
from medseg_kit.typing import PathLike, UserError

if TYPE_CHECKING:
    from monai.bundle import ConfigParser


def make_weights(job: Job, run_dir: Path, *, checkpoint_rule: str) -> dict[str, Any]:
    """Train, federate or find the weights of a run; return where they are and what they cost.

    A finished training is not repeated: its outcome stands in trained.json.

    Args:
        job: The run.
        run_dir: Its folder.
        checkpoint_rule: "best_validation" or "last".

    Returns:
        `weights` (path), `selection`, `local_steps`, `seconds`, `curves`, of a training or a
        federation `options` (of its step, network, augmentation and slices), and of a training
        `pseudo_labels`.

    Raises:
        UserError: If the configuration or the data cannot be used.
    """
    done = run_dir / "trained.json"
    if done.is_file():
        content: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return content
    started = time.perf_counter()
    if job.spec.mode == "train":
        outcome = train(job, run_dir / "training", checkpoint_rule=checkpoint_rule)
    elif job.spec.mode == "federate":
        outcome = federate(job, run_dir, checkpoint_rule=checkpoint_rule)
    else:
        outcome = existing_weights(job)
    before = outcome.pop("seconds_before", 0.0)
    outcome["seconds"] = round(before + time.perf_counter() - started, 3)
    write_json(done, outcome)
    return outcome


def train(job: Job, out: Path, *, checkpoint_rule: str) -> dict[str, Any]:
    """Run a bundle's train.yaml with its overlays; continue where a killed one stopped.

    Raises:
        UserError: If the configuration, or an override, does not fit the bundle.
    """
    from medseg_kit.bundle.config import load_config
    from medseg_kit.study.curves import record_curves

    files = ["train.yaml", *job.spec.overlays]
    config = load_config(str(job.spec.bundle), files)
    overrides: dict[str, Any] = {"output_dir": str(out), "seed": job.seed}
    if "labelled" in config:  # its data set hides the other labels, and keeps the images
        overrides |= {"dataset_dir": str(job.spec.data), "labelled": _labelled(job)}
    else:
        keep = job.spec.unlabelled == "keep"
        view = out.parent / "data"
        overrides["dataset_dir"] = _training_data(job, job.spec.data or "", view, keep=keep)
    if "resume" in config:
        overrides["resume"] = True
    overrides |= {**job.spec.overrides, **job.spec.paths}
    # a parser of its own, before the seed is set: the training's random numbers stay what they are
    components = describe_components(load_config(str(job.spec.bundle), files, overrides=overrides))
    parser = load_config(str(job.spec.bundle), files, overrides=overrides)
    parser.get_parsed_content("initialize")
    curves = record_curves(parser, out / "curves.json", data=str(job.spec.data))
    parser.get_parsed_content("run")
    parser.get_parsed_content("finalize")
    step = parser.get_parsed_content("train#step")
    return {
        "weights": str(chosen_weights(parser, out, checkpoint_rule)),
        "selection": checkpoint_rule,
        "local_steps": int(step.global_step),
        "options": {**options_of(step), **components},
        "seconds_before": curves.seconds_before,
        **curves.outcome(),
    }


def chosen_weights(parser: Any, out: Path, checkpoint_rule: str) -> Path:
    """Return the file with the weights that the rule chooses, as the state dict that deploys.

    Args:
        parser: The configuration after its run.
        out: Where it wrote the weights with the best validation.
        checkpoint_rule: "best_validation" or "last".

    Raises:
        UserError: If training left no such file.
    """
    import torch

    if checkpoint_rule == "last":
        part = "deployed" if "deployed" in parser else "network"
        torch.save(parser.get_parsed_content(part).state_dict(), out / "last.pt")
        return out / "last.pt"
    best = out / "model.pt"
    if not best.is_file():
        raise UserError(f"training left no {best}; check its handlers (CheckpointSaver)")
    return best


def federate(job: Job, run_dir: Path, *, checkpoint_rule: str) -> dict[str, Any]:
    """Run a federation in this process; it continues after its last complete round.

    A federation deploys its last round where no site may report; the rule "last" lets none report.

    Raises:
        UserError: If the bundle, a site or an option does not fit.
    """
    from medseg_kit.bundle.config import load_config
    from medseg_kit.data.datalist import site_folders
    from medseg_kit.fl.plan import Options
    from medseg_kit.fl.simulation import simulate

    keep = job.spec.unlabelled == "keep"
    keep = keep or "labelled" in load_config(str(job.spec.bundle), ["train.yaml"])
    sites = {
        name: Path(folder)
        if keep and not _has_labels(folder)
        else Path(_training_data(job, folder, run_dir / "data" / name, keep=keep))
        for name, folder in site_folders(job.spec.sites or "").items()
    }
    options = Options(
        rounds=job.spec.rounds,
        method=",".join(Path(name).stem for name in job.spec.overlays) or None,
        seed=job.seed,
        overrides={**job.spec.overrides, **job.spec.paths},
        min_cases=sys.maxsize if checkpoint_rule == "last" else job.spec.min_cases,
    )
    out = run_dir / "federation"
    summary = simulate(str(job.spec.bundle), sites, out, options=options)
    records = read_ledger(out)
    steps: dict[str, int] = {}
    for record in of_type(records, "site"):
        steps[record["site"]] = steps.get(record["site"], 0) + (record["num_steps"] or 0)
    return {
        "weights": str(out / "global" / "model.pt"),
        "selection": summary["selection"],
        "local_steps": max(steps.values(), default=0),
        "options": describe_federation(str(job.spec.bundle), next(iter(sites.values())), options),
        "curves": metric_curves(records),
    }


def existing_weights(job: Job) -> dict[str, Any]:
    """Return the weights of a run that trains nothing here; a command brings its own.

    They are those that the run names, else the bundle's own; none where an overlay sets
    `checkpoint: null`, as a floor without training does.
    """
    weights = job.weights
    if weights is None and job.spec.mode == "evaluate":
        from medseg_kit.bundle.config import load_config
        from medseg_kit.bundle.paths import resolve_bundle

        files = ["inference.yaml", *job.spec.inference.get("overlays", ())]
        if load_config(str(job.spec.bundle), files)["checkpoint"] is not None:
            weights = str(resolve_bundle(str(job.spec.bundle)) / "models" / "model.pt")
    return {"weights": weights, "selection": "as given", "local_steps": None, "curves": []}


def predict(job: Job, out: Path, *, weights: str | None, test: Mapping[str, str]) -> None:
    """Write the test cases' predictions, by the bundle's inference.yaml or the run's command.

    A one-shot bundle segments each site's cases by that site's own support scan.

    Raises:
        UserError: If a case fails, weights do not fit, or the command ends with another code than
            0.
    """
    if job.spec.mode == "command":
        run_command(job, out, test=test)
        return
    from medseg_kit.bundle.config import load_config

    overrides = {
        "output_dir": str(out),
        **({} if weights is None else {"checkpoint": weights}),
        "predictor#options#section": test["section"],
        **job.spec.inference.get("overrides", {}),
    }
    files = ["inference.yaml", *job.spec.inference.get("overlays", ())]
    if "seed" in load_config(str(job.spec.bundle), files):  # of weights that nobody trained
        overrides = {"seed": job.seed, **overrides}
    by_site = takes_site_supports(load_config(str(job.spec.bundle), files, overrides=overrides))
    for folder in parts_of(test) if by_site else [test["data"]]:
        parser = load_config(
            str(job.spec.bundle), files, overrides={"dataset_dir": folder, **overrides}
        )
        parser.get_parsed_content("predictor").predict()


def takes_site_supports(parser: ConfigParser) -> bool:
    """Return whether a bundle's inference takes the support scans of its data set."""
    config = parser.get()
    return "support" in config and config["support"] is None


def parts_of(test: Mapping[str, str]) -> list[str]:
    """Return the folders of the sites among which a data set's test cases are divided.

    The data set itself where it has no sites, or sites do not hold all of its test cases.

    Args:
        test: `data` and `section` of the test cases.
    """
    from medseg_kit.data.datalist import read_datalist, site_folders
    from medseg_kit.data.records import SITES_FOLDER

    whole = test["data"]
    sites = Path(whole) / SITES_FOLDER
    if not sites.is_dir():
        return [whole]
    counts = {
        str(folder): len(read_datalist(folder)[test["section"]])
        for folder in site_folders(sites).values()
    }
    if sum(counts.values()) < len(read_datalist(whole)[test["section"]]):
        return [whole]
    return [folder for folder, count in counts.items() if count]


def run_command(job: Job, out: Path, *, test: Mapping[str, str]) -> None:
    """Run a program that writes predictions; its output goes to the run's log.

    Raises:
        UserError: If it ends with another code than 0.
    """
    out.mkdir(parents=True, exist_ok=True)
    values = {
        "predictions": str(out),
        "run_dir": str(out.parent),
        "test": test["data"],
        "seed": str(job.seed),
        "label_budget": "" if job.label_budget is None else str(job.label_budget),
    }
    words = [word.format(**values) for word in job.spec.command]
    try:
        code = subprocess.run(words, check=False).returncode
    except OSError as error:
        raise UserError(f"run {job.spec.name}: cannot start {words[0]}: {error}") from error
    if code != 0:
        raise UserError(f"run {job.spec.name}: {' '.join(words)} ended with code {code}")


def evaluate(
    job: Job, predictions: Path, *, test: Mapping[str, str], policy: str
) -> list[dict[str, Any]]:
    """Return the score rows of the test cases.

    Raises:
        UserError: If a prediction is missing or the grids differ.
    """
    organs = None if job.spec.organs is None else list(job.spec.organs)
    references = find_references(test["data"], section=test["section"], organs=organs)
    records = evaluate_predictions(predictions, references, policy=policy)
    return [record.to_dict() for record in records]


def discard_training(run_dir: Path) -> None:
    """Remove what a run of another configuration left in the folder."""
    if run_dir.is_dir():
        shutil.rmtree(run_dir)


def _labelled(job: Job) -> int | str | list[str]:
    """Return the label budget as the id `labelled` takes it."""
    if job.label_budget is None:
        return "all"
    if job.label_order == "listed":
        return job.label_budget
    return labelled_subjects(str(job.spec.data), job.label_budget, seed=job.seed)


def _has_labels(folder: PathLike) -> bool:
    return any("label" in case for case in read_datalist(folder)["training"])


def _training_data(job: Job, data: str | Path, view: Path, *, keep: bool) -> str:
    """Return a data set with the labels of the budget."""
    if job.label_budget is None:
        return str(data)
    view = limit_labels(
        data,
        view,
        num_subjects=job.label_budget,
        keep_unlabelled=keep,
        seed=job.seed if job.label_order == "seeded" else None,
    )
    return str(view)
