import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from medseg_kit.cli.report import report
from medseg_kit.files import write_json
from medseg_kit.report.comparison import read_records
from medseg_kit.study.runner import describe_job, keep_earlier, run_study, write_records
from medseg_kit.study.spec import jobs, load_study
from medseg_kit.typing import UserError

FAKE = Path(__file__).with_name("fake_run.py")


def command(shift, *more):
    return [sys.executable, str(FAKE), "{predictions}", "{test}", str(shift), *map(str, more)]


def study_file(folder, runs, **changes):
    path = folder / "study.yaml"
    content = {"name": "toy", "test": {"data": "data"}, "runs": runs} | changes
    path.write_text(yaml.safe_dump(content))
    return path


def starts(out, job):
    return (out / "runs" / job / "starts.txt").read_text().count("start")


@pytest.mark.slow
def test_study__killed_and_started_again_repeats_no_finished_run(dataset, tmp_path):
    wait = tmp_path / "wait"
    wait.touch()
    runs = [
        {"name": "exact", "mode": "command", "command": command(0)},
        {"name": "moved", "mode": "command", "command": command(1, wait)},
    ]
    file, out = study_file(tmp_path, runs), tmp_path / "out"
    words = [sys.executable, "-m", "medseg_kit.cli", "study", str(file), "--out", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    marker = out / "runs" / "moved_seed0" / "starts.txt"
    deadline = time.monotonic() + 120
    while not marker.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [record["run"] for record in read_records(out)] == ["exact"]
    time.sleep(0.5)  # the worker ends with the study, so that the lock is free
    wait.unlink()
    finished = subprocess.run(words, check=True, capture_output=True, encoding="utf-8")
    assert "exact_seed0: finished before" in finished.stdout
    assert "moved minus exact" in finished.stdout
    assert starts(out, "exact_seed0") == 1
    assert starts(out, "moved_seed0") == 2
    records = read_records(out)
    assert [record["run"] for record in records] == ["exact", "moved"]
    check_record(records[1])
    check_report(out, tmp_path / "report")


def test_study__weights_made_by_a_run_of_the_same_study(dataset, tmp_path, monkeypatch):
    """Evaluating them is done once, although they were not there when the study began."""
    weights = tmp_path / "weights.pt"
    runs = [
        {"name": "trained", "mode": "command", "command": command(0)},
        {"name": "evaluated", "mode": "evaluate", "weights": str(weights)},
    ]
    study = load_study(study_file(tmp_path, runs, bundle="hippocampus_mr_segviz"))

    def run_job(run_dir, plan):
        weights.write_text("of the first run")
        record = {"identity": plan["identity"]}
        write_json(run_dir / "record.json", record)
        return record, ""

    monkeypatch.setattr("medseg_kit.study.runner.run_job", run_job)
    states = []
    for _ in range(2):
        run_study(study, tmp_path / "out", on_job=lambda _, state: states.append(state))
    assert states == ["started", "done"] * 2 + ["finished before"] * 2
    weights.write_text("made anew")
    run_study(study, tmp_path / "out", on_job=lambda _, state: states.append(state))
    assert states[6:] == ["finished before", "started", "done"]


def test_describe_job__the_bundles_own_weights_count(dataset, tmp_path, repository, monkeypatch):
    shutil.copytree(
        repository / "bundles" / "hippocampus_mr_segviz", tmp_path / "bundles" / "own_segviz"
    )
    weights = tmp_path / "bundles" / "own_segviz" / "models" / "model.pt"
    runs = [{"name": "shipped", "mode": "evaluate"}]
    study = load_study(study_file(tmp_path, runs, bundle=str(weights.parents[1])))
    before = describe_job(study, next(iter(jobs(study))))["identity"]
    weights.write_bytes(weights.read_bytes() + b"other")
    assert describe_job(study, next(iter(jobs(study))))["identity"] != before


def check_record(record):
    for key in (
        "configuration",
        "data_sha256",
        "hardware",
        "versions",
        "seconds",
        "checkpoint_rule",
    ):
        assert record[key]
    assert (record["seed"], record["local_steps"]) == (0, None)
    dice = {row["case"]: row["dice"] for row in record["cases"] if row["label"] == "liver"}
    assert dice == pytest.approx({"p0": 0.75, "p1": 0.75, "p2": 0.75})


def check_report(out, folder):
    assert report(str(out), out=str(folder)) == 0
    for name in ("table.csv", "tests.csv", "dice.svg", "hd95_mm.png", "report.html"):
        assert (folder / name).is_file()
    assert len(list((folder / "overlays").glob("*.png"))) == 8
    comparison = json.loads((folder / "comparison.json").read_text())
    liver = next(
        row for row in comparison["table"] if (row["model"], row["label"]) == ("moved", "liver")
    )
    assert liver["dice_low"] == pytest.approx(0.75)
    assert liver["num_patients"] == 3


@pytest.mark.slow
def test_study__changed_configuration_is_run_again_and_failures_are_named(dataset, tmp_path):
    out = tmp_path / "out"
    run = {"name": "a", "mode": "command", "command": command(0)}
    run_study(load_study(study_file(tmp_path, [run])), out)
    changed = run | {"command": command(1)}
    broken = {"name": "b", "mode": "command", "command": ["false"]}
    states = []
    with pytest.raises(
        UserError, match="1 of 2 runs failed: b_seed0: run b: false ended with code 1"
    ):
        run_study(
            load_study(study_file(tmp_path, [changed, broken])),
            out,
            on_job=lambda job, state: states.append((job.name, state)),
        )
    assert states == [
        ("a_seed0", "started"),
        ("a_seed0", "done"),
        ("b_seed0", "started"),
        ("b_seed0", "failed"),
    ]
    assert read_records(out)[0]["cases"][0]["dice"] == pytest.approx(0.75)
    (earlier,) = (out / "records.earlier.jsonl").read_text().splitlines()
    assert json.loads(earlier)["cases"][0]["dice"] == pytest.approx(1.0)


def test_keep_earlier__records_that_do_not_count_are_not_lost(tmp_path, caplog):
    old, new = ({"identity": name} for name in ("old", "new"))
    write_records(tmp_path, [old, new])
    for _ in range(2):  # a study that was stopped before its next record
        keep_earlier(tmp_path, [new])
    assert (tmp_path / "records.earlier.jsonl").read_text() == '{"identity": "old"}\n'
    assert "1 records are of another configuration" in caplog.text
    keep_earlier(tmp_path / "nothing", [])


@pytest.mark.slow
def test_study__records_count_on_another_machine_and_name_no_place(dataset, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(dataset[0], here / "data")
    runs = [{"name": name, "mode": "command", "command": command(0)} for name in ("a", "b")]
    records = run_study(load_study(study_file(here, runs)), here / "out", parallel=2)
    assert [record["run"] for record in records] == ["a", "b"]
    assert str(here) not in (here / "out" / "records.jsonl").read_text()
    shutil.copytree(here, there, ignore=shutil.ignore_patterns("runs"))
    states = []
    run_study(
        load_study(there / "study.yaml"),
        there / "out",
        on_job=lambda _, state: states.append(state),
    )
    assert states == ["finished before"] * 2


def test_describe_job__depends_on_the_files_that_a_run_uses(dataset, tmp_path):
    configs = tmp_path / "toy" / "configs"
    (configs / "methods").mkdir(parents=True)
    for name in ("train.yaml", "inference.yaml", "methods/a.yaml", "metadata.json"):
        (configs / name).write_text("{}")
    run = {"name": "a", "mode": "train", "bundle": str(tmp_path / "toy"), "data": "data"}
    study = load_study(
        study_file(tmp_path, [run, run | {"name": "b", "overlays": ["methods/a.yaml"]}])
    )

    def identities():
        return [describe_job(study, job)["identity"] for job in jobs(study)]

    first = identities()
    (configs / "methods" / "another.yaml").write_text("{}")
    (configs / "metadata.json").write_text('{"version": "2"}')
    assert identities() == first
    (configs / "methods" / "a.yaml").write_text("learning_rate: 1")
    second = identities()
    assert (second[0] == first[0], second[1] == first[1]) == (True, False)
