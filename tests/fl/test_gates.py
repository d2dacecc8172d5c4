"""Gates: a federation equals what it must equal, bit for bit or to rounding."""

from __future__ import annotations

import json

import pytest
import torch
from gates import assert_one_site_equals_local, global_state, records, toy_options
from toy_federation import make_site

from medseg_kit.fl import files
from medseg_kit.fl.plan import read_plan
from medseg_kit.fl.simulation import simulate
from medseg_kit.fl.state import digest
from medseg_kit.typing import UserError

# MONAI 1.6's LoadImage warns of an optional DICOM decoder wherever it is not installed.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")


@pytest.mark.parametrize("method", [None, "segviz"])
def test_one_site__equals_local_training(bundle, tmp_path, method):
    site = make_site(tmp_path / "sites" / "a", training=4)
    assert_one_site_equals_local(bundle, site, tmp_path, options=toy_options(method=method))


def test_one_site__several_local_epochs_equal_local_training(bundle, tmp_path):
    site = make_site(tmp_path / "sites" / "a", training=4)
    options = toy_options(overrides={"local_epochs": 2})
    assert_one_site_equals_local(bundle, site, tmp_path, options=options)


def test_pooled_step__equals_n_sites_with_one_full_batch_step(bundle, sites, tmp_path):
    overrides = {"batch_size": 8, "momentum": 0.0, "noise": 0.0, "train#lr_schedule": None}
    options = toy_options(rounds=1, overrides=overrides)
    simulate(bundle, sites, tmp_path / "out", options=options)
    pooled = tmp_path / "pooled"
    pooled.mkdir()
    content = json.loads((sites / "a" / "datalist.json").read_text())
    content |= {"training": [], "validation": []}
    for name in "abc":
        for case in json.loads((sites / name / "datalist.json").read_text())["training"]:
            moved = {key: f"{name}/{case[key]}" for key in ("image", "label")}
            content["training"].append({**case, **moved})
        (pooled / name).symlink_to(sites / name)
    (pooled / "datalist.json").write_text(json.dumps(content))
    simulate(bundle, {"pooled": pooled}, tmp_path / "p", options=options)
    federated, central = global_state(tmp_path / "out"), global_state(tmp_path / "p")
    start = read_plan(bundle, toy_options()).global_state
    for key, value in central.items():
        assert not torch.equal(value, start[key])
        torch.testing.assert_close(federated[key], value, rtol=1e-5, atol=1e-6)


def test_averaged_weights__reach_the_clients(finished):
    # the public SegViz notebooks average into a loop variable and never write it back
    first = records(finished.out, "round")[0]
    for site in "abc":
        assert digest(finished.received["train", 2, site]) == first["digest"]
    sent = [record["digest"] for record in records(finished.out, "site")]
    assert len(set(sent)) == len(sent)
    assert first["digest"] not in sent


def test_simulate__segviz_shares_the_representation_only(bundle, tmp_path):
    for name, organ in (("a", "left"), ("b", "right")):
        make_site(tmp_path / "sites" / name, annotated=[organ])
    out = tmp_path / "out"
    simulate(bundle, tmp_path / "sites", out, options=toy_options(method="segviz", rounds=2))
    model = torch.load(out / "global" / "model.pt", weights_only=True)
    plan = read_plan(bundle, toy_options(method="segviz"))
    assert model.keys() == plan.global_state.keys()
    for record in records(out, "site"):
        other = "right" if record["site"] == "a" else "left"
        keys = [key for key in model if not key.startswith(f"heads.{other}.")]
        assert record["expected_keys"] == record["received_keys"] == len(keys)


def test_fedprox__without_pull_is_fedavg(finished, tmp_path):
    def run(name, **options):
        options = toy_options(method="fedprox", **options)
        return simulate(finished.bundle, finished.sites, tmp_path / name, options=options)

    assert run("zero")["digest"] == finished.summary["digest"]
    assert run("pulled", overrides={"mu": 10.0})["digest"] != finished.summary["digest"]


def test_schedules__run_over_the_whole_federation(finished):
    state = files.load_torch(next(finished.out.glob("sites/a/client_state/round_00003_*.pt")))
    assert state["step"]["global_step"] == 3
    # cosine over 3 steps in all, at the third: 0.05 * 0.5 * (1 + cos(2 pi / 3))
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.0125)
    assert state["optimizer"]["state"]


def test_client_state__reset_differs_from_keep(finished, tmp_path):
    options = toy_options(overrides={"client_state": "reset"})
    summary = simulate(finished.bundle, finished.sites, tmp_path / "reset", options=options)
    assert summary["digest"] != finished.summary["digest"]
    assert records(tmp_path / "reset", "run")[0]["client_state"] == "reset"


def test_methods__merge_from_left_to_right(bundle):
    options = toy_options(method="segviz,fedprox")
    assert read_plan(bundle, options).description["config"] not in {
        read_plan(bundle, toy_options(method=name)).description["config"]
        for name in ("segviz", "fedprox")
    }
    with pytest.raises(UserError, match=r"method 'fedpro' is unknown .*fedprox"):
        read_plan(bundle, toy_options(method="segviz,fedpro"))


def test_fine_tuning__changes_the_heads_alone(bundle, tmp_path):
    for name, organ in (("a", "left"), ("b", "right")):
        make_site(tmp_path / "sites" / name, annotated=[organ])

    def run(name, **options):
        options = toy_options(method="segviz", rounds=1, **options)
        simulate(bundle, tmp_path / "sites", tmp_path / name, options=options)
        return tmp_path / name / "global" / "model.pt"

    frozen = {"network_def#frozen_representation": True}
    with pytest.raises(UserError, match=r"do not learn.*--initial_weights"):
        run("alone", overrides=frozen)
    first = run("first")
    fine = run("fine", overrides=frozen, initial_weights=first)
    before, after = (torch.load(path, weights_only=True) for path in (first, fine))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key.split(".")[1] for key in changed} == {"left", "right"}
    assert all(key.startswith("heads.") for key in changed)
    run_record = records(tmp_path / "fine", "run")[0]
    assert run_record["initial_weights"].startswith("sha256:")
    assert str(tmp_path) not in json.dumps(run_record)
