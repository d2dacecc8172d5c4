"""A federation that was stopped continues and ends as if it had not been."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from gates import records, toy_options
from toy_federation import make_site, subprocess_environment

from medseg_kit import files
from medseg_kit.fl import store
from medseg_kit.fl.client import SiteClient
from medseg_kit.fl.memory import SiteMemory
from medseg_kit.fl.plan import read_plan
from medseg_kit.fl.simulation import simulate
from medseg_kit.fl.state import digest
from medseg_kit.typing import UserError

# MONAI 1.6's LoadImage warns of an optional DICOM decoder wherever it is not installed.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")


class _Killed(BaseException):
    """Ends a federation as a kill does: nothing in the package handles it."""


def _stop_after(bundle, sites, out, options, *, rounds):
    def stop(record):
        if record["round"] == rounds:
            raise _Killed

    with pytest.raises(_Killed):
        simulate(bundle, sites, out, options=options, on_round=stop)


def test_keys_that_never_leave__are_restored_after_a_restart(finished, tmp_path):
    options, out = toy_options(method="private_head", rounds=2), tmp_path / "out"
    bundle, sites = finished.bundle, finished.sites
    whole = simulate(bundle, sites, tmp_path / "whole", options=options)
    _stop_after(bundle, sites, out, options, rounds=1)
    assert simulate(bundle, sites, out, options=options)["digest"] == whole["digest"]
    keys = read_plan(bundle, options).global_state
    shared = [key for key in keys if not key.startswith("model.2.")]
    assert len(shared) < len(keys)
    assert records(out, "site")[0]["received_keys"] == len(shared)


def test_finished_federation__is_not_run_again(finished, monkeypatch):
    monkeypatch.setattr(SiteClient, "handle", lambda *_: pytest.fail("a site was asked"))
    again = simulate(finished.bundle, finished.sites, finished.out, options=toy_options())
    assert again == finished.summary


def test_another_federation__in_the_folder_is_refused(finished, tmp_path):
    out = shutil.copytree(finished.out, tmp_path / "out")
    options = toy_options(rounds=1, seed=5)
    with pytest.raises(UserError, match=r"with seed 0, not 5; give another --out"):
        simulate(finished.bundle, finished.sites, out, options=toy_options(seed=5))
    other = simulate(finished.bundle, finished.sites, out, options=options, resume=False)
    assert other["seed"] == 5
    assert {record["round"] for record in records(out, "site")} == {1}


def test_half_written_ledger_line__is_dropped(finished, tmp_path):
    out = tmp_path / "out"
    _stop_after(finished.bundle, finished.sites, out, toy_options(), rounds=1)
    with (out / "ledger.jsonl").open("a") as file:
        file.write('{"type": "site", "round": 2, "site": "a"}\n{"type": "si')
    again = simulate(finished.bundle, finished.sites, out, options=toy_options())
    assert again["digest"] == finished.summary["digest"]
    assert [record["round"] for record in records(out, "round")] == [1, 2, 3]
    assert len(records(out, "site")) == 9


@pytest.mark.slow
def test_killed_at_any_write__ends_with_the_same_weights(bundle, tmp_path, monkeypatch):
    for number, name in enumerate("ab"):
        make_site(tmp_path / "sites" / name, seed=number)
    options, sites = toy_options(rounds=2), tmp_path / "sites"
    whole = simulate(bundle, sites, tmp_path / "whole", options=options)
    model = _deployed(tmp_path / "whole")
    for moment in range(0, 100, 2):
        out = tmp_path / f"out{moment}"
        if not _killed_at(moment, bundle, sites, out, options=options, monkeypatch=monkeypatch):
            break
        again = simulate(bundle, sites, out, options=options)
        assert (again["digest"], _deployed(out)) == (whole["digest"], model), moment
        assert len(records(out, "site")) == 4
        assert len(records(out, "round")) == 2
    assert moment > 10


def _killed_at(moment, bundle, sites, out, *, options, monkeypatch):
    """Return whether a federation was ended at its n-th write to the disk."""
    original, calls = files.sync, []

    def sync(path):
        calls.append(path)
        if len(calls) > moment:
            raise _Killed
        original(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", sync)
        patch.setattr(store, "sync", sync)
        try:
            simulate(bundle, sites, out, options=options)
        except _Killed:
            return True
    return False


def _deployed(out):
    return digest(torch.load(out / "global" / "model.pt", weights_only=True))


SCRIPT = """
import sys
from medseg_kit.fl.plan import Options
from medseg_kit.fl.simulation import simulate
simulate(*sys.argv[1:4], options=Options(rounds=6, min_cases=1))
"""


@pytest.mark.slow
def test_sigkill__at_random_moments_ends_with_the_same_weights(finished, tmp_path):
    bundle, sites, out = finished.bundle, finished.sites, tmp_path / "out"
    whole = simulate(bundle, sites, tmp_path / "whole", options=toy_options(rounds=6))
    moments = random.Random(0)
    for kill in range(3):
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, str(bundle), str(sites), str(out)],
            env=subprocess_environment(),
            stderr=subprocess.DEVNULL,
        )
        done = store.ServerStore(out).completed()
        while kill < 2 and process.poll() is None and store.ServerStore(out).completed() == done:
            time.sleep(0.01)
        if kill < 2:
            time.sleep(moments.uniform(0, 0.5))
            process.kill()
        code = process.wait(timeout=240)
        # a quick machine may have finished before the blow
        assert code in ((-signal.SIGKILL, 0) if kill < 2 else (0,))
    assert json.loads((out / "summary.json").read_text())["digest"] == whole["digest"]
    assert _deployed(out) == _deployed(tmp_path / "whole")
    assert [record["round"] for record in records(out, "round")] == list(range(1, 7))


def test_resume__a_federation_without_a_complete_round_is_begun_anew(bundle, tmp_path):
    make_site(tmp_path / "sites" / "a", training=0)
    with pytest.raises(UserError, match="quorum"):
        simulate(bundle, tmp_path / "sites", tmp_path / "out", options=toy_options(rounds=3))
    shutil.rmtree(tmp_path / "sites")
    make_site(tmp_path / "sites" / "a")
    options = toy_options(rounds=1, seed=3)
    summary = simulate(bundle, tmp_path / "sites", tmp_path / "out", options=options)
    assert (summary["num_rounds"], summary["seed"]) == (1, 3)


def _memory(folder):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    state = SimpleNamespace(epoch_length=1, epoch=0, iteration=0)
    trainer = SimpleNamespace(optimizer=optimizer, state=state)
    private = {"round": torch.tensor(0)}
    return SiteMemory(trainer, None, folder, policy="keep", private=private)


def test_memory__keeps_what_a_round_began_from_until_the_next(tmp_path):
    """A site missed round 3; the server was killed before it saved round 4, and asks again."""
    site = _memory(tmp_path)
    for number in (1, 2, 4):
        site.begin("run", number, 9, 1)
        site.private = {"round": torch.tensor(number)}
        site.end("run", number)
    again = _memory(tmp_path)
    again.begin("run", 4, 9, 1)
    assert again.private["round"] == 2
    other = _memory(tmp_path)  # another federation of the same site
    other.begin("other", 1, 9, 1)
    other.end("other", 1)
    third = _memory(tmp_path)
    third.begin("run", 5, 9, 1)
    assert third.private["round"] == 4
