"""NVIDIA FLARE: the same bits as in one process, and jobs without code or paths."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from gates import global_state, records, toy_options
from toy_federation import install_bundle, make_site, subprocess_environment

from medseg_kit.fl.messages import Reply, Request
from medseg_kit.fl.simulation import simulate
from medseg_kit.fl.state import digest
from medseg_kit.typing import UserError

pytest.importorskip("nvflare")
# importing nvflare 2.9 itself warns of deprecated names in its dependencies
pytestmark = [
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.slow
@pytest.mark.integration
def test_simulator__gives_the_same_weights_as_one_process(bundle, tmp_path, monkeypatch):
    from medseg_kit.fl.adapters.flare import recipe

    for name, organ in (("a", "left"), ("b", "right")):
        make_site(tmp_path / "sites" / name, annotated=[organ])
    # selective synchronisation: every site has its own keys and its own task
    options = toy_options(method="segviz", rounds=2, overrides={"learning_rate": 0.01})
    one = simulate(bundle, tmp_path / "sites", tmp_path / "one", options=options)
    for name, value in subprocess_environment().items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "flare"
    two = recipe.simulate(bundle, tmp_path / "sites", out, options=options)
    assert two["digest"] == one["digest"]
    assert digest(global_state(out)) == digest(global_state(tmp_path / "one"))
    for ours, theirs in zip(records(tmp_path / "one", "site"), records(out, "site"), strict=True):
        for name in ("site", "status", "digest", "metrics", "update_norm", "received_keys"):
            assert ours[name] == theirs[name]
    ours, theirs = (
        torch.load(folder / "global" / "model.pt", weights_only=True)
        for folder in (tmp_path / "one", out)
    )
    assert digest(ours) == digest(theirs)


def test_received__what_cannot_be_read_costs_the_site_its_round():
    from nvflare.app_common.abstract.fl_model import FLModel

    from medseg_kit.fl.adapters.flare.exchange import META, received, to_model

    request = Request("train", "run", 3, 5)
    good = Reply("b", "train", 3, content={"num_samples": 2}, state={"w": torch.ones(2)})
    assert received(to_model(good), request, "a").site == "a"
    junk = FLModel(params={"w": "text"}, meta={META: good.meta()})
    for model in (junk, FLModel(params={}, meta={}), FLModel(params={}, meta={META: [1]})):
        reply = received(model, request, "a")
        assert (reply.site, reply.kind, reply.round_number) == ("a", "train", 3)
        assert reply.error.startswith("unreadable answer: ")


def test_verified_summary__job_that_did_nothing(tmp_path):
    from medseg_kit.fl.adapters.flare.recipe import _verified_summary

    with pytest.raises(UserError, match="ended with code 0 after 0 of 2 rounds"):
        _verified_summary(tmp_path, 2, 0, tmp_path / "simulator.log")


def test_export__job_names_the_bundle_only(bundle, tmp_path):
    from medseg_kit.fl.adapters.flare import recipe

    options = toy_options(method="segviz", rounds=2, overrides={"learning_rate": 0.01})
    job = recipe.export(bundle, tmp_path / "job", options=options, sites=["a", "b"])
    files = sorted(path.relative_to(job).as_posix() for path in job.rglob("*") if path.is_file())
    assert files == [
        "app/config/config_fed_client.json",
        "app/config/config_fed_server.json",
        "meta.json",
    ]
    text = "".join((job / name).read_text() for name in files)
    assert str(tmp_path) not in text
    client = json.loads((job / files[0]).read_text())["executors"][0]["executor"]["args"]
    assert client == {
        "bundle": "toy_bundle",
        "method": "segviz",
        "overrides": {"learning_rate": 0.01},
    }
    server = json.loads((job / files[1]).read_text())["workflows"][0]["args"]
    assert (server["bundle"], server["sites"]) == ("toy_bundle", ["a", "b"])
    with pytest.raises(UserError, match="exists already"):
        recipe.export(bundle, tmp_path / "job", options=options)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train#step#_target_": "os.system"}, "may not change what a site runs"),
        ({"run": "x"}, "may not change what a site runs"),
        ({"learning_rate": "$print(1)"}, "plain values only"),
        ({"amp": "{SECRET}"}, "plain values only"),
        ({"organs": ["a"]}, "numbers, words and true or false"),
        ({"bundle_root": "evil"}, "may not name a place"),
        ({"amp": "../../x"}, "may not name a place"),
    ],
)
def test_scalar_overrides__refuses_code(overrides, message):
    from medseg_kit.fl.adapters.flare.exchange import scalar_overrides

    with pytest.raises(UserError, match=message):
        scalar_overrides(overrides)
    assert scalar_overrides({"amp": "bf16", "mu": 0.5}) == {"amp": "bf16", "mu": 0.5}


def test_exchange__round_trip_keeps_bits_and_shapes():
    from medseg_kit.fl.adapters.flare.exchange import to_model, to_reply, to_request

    state = {"w": torch.randn(2, 3), "n": torch.tensor(7), "h": torch.ones(2, dtype=torch.float16)}
    request = to_request(to_model(Request("train", "id", 3, 9, state=state)))
    assert (request.kind, request.run_id, request.num_rounds) == ("train", "id", 9)
    assert digest(request.state) == digest(state)
    reply = to_reply(to_model(Reply("a", "train", 3, {"num_samples": 2}, None, state)))
    assert (reply.site, reply.round_number, reply.content) == ("a", 3, {"num_samples": 2})
    assert digest(reply.state) == digest(state)


@pytest.mark.parametrize(
    "changes",
    [{"bundle": "/tmp/evil"}, {"bundle": "../evil"}, {"method": "a,../../evil"}, {"method": "a b"}],
)
def test_executor__starts_the_installed_client_for_names_only(changes):
    from medseg_kit.fl.adapters.flare import client
    from medseg_kit.fl.adapters.flare.executor import SiteExecutor

    good = {"bundle": "toy_bundle", "seed": 4, "method": "segviz,fedprox", "overrides": {"x": 1}}
    command = SiteExecutor(**good).command("site.yaml")
    # FLARE starts it in a folder that the job ships: a file by its place, no module by its name
    assert command[:2] == [sys.executable, "-u"]
    assert Path(command[2]) == Path(client.__file__)
    assert " ".join(command[3:]) == (
        "--site_file site.yaml --bundle toy_bundle --seed 4 --set x=1 --method segviz,fedprox"
    )
    with pytest.raises(UserError, match="is no name"):
        SiteExecutor(**good | changes)


def test_site_file__a_job_gives_no_path_of_a_bundle(bundle, tmp_path):
    from medseg_kit.fl.adapters.flare.client import read_site_config

    path = tmp_path / "medseg_site.yaml"
    path.write_text(f"dataset_dir: {tmp_path}\n")
    job = argparse.Namespace(bundle=os.fspath(bundle), method=None, seed=0, set=[])
    with pytest.raises(UserError, match="a path is the site's own to give"):
        read_site_config(path, name="a", job=job)


def test_client__looks_for_nothing_in_the_folder_that_the_job_ships(tmp_path, monkeypatch):
    import nvflare.client

    from medseg_kit.bundle.paths import resolve_bundle
    from medseg_kit.fl.adapters.flare.client import main

    shipped, own = tmp_path / "job", tmp_path / "site"
    install_bundle(shipped / "bundles" / "toy_bundle")
    own.mkdir()
    monkeypatch.chdir(shipped)
    assert resolve_bundle("toy_bundle").is_relative_to(shipped)

    def init():
        raise ConnectionError

    monkeypatch.setattr(nvflare.client, "init", init)
    with pytest.raises(ConnectionError):
        main(["--site_file", str(own / "medseg_site.yaml"), "--bundle", "toy_bundle"])
    with pytest.raises(UserError, match="not found"):
        resolve_bundle("toy_bundle")


def _job(bundle):
    return argparse.Namespace(
        bundle=bundle.name, method="segviz", seed=4, set=["learning_rate=0.5"]
    )


def test_site_file__holds_the_paths_and_the_sites_own_rules(bundle, tmp_path):
    from medseg_kit.fl.adapters.flare.client import read_site_config

    path = tmp_path / "medseg_site.yaml"
    own = f"bundle: {bundle}\nmin_cases: 7\noverrides: {{x: 1}}\n"
    path.write_text(f"dataset_dir: {tmp_path / 'data'}\n{own}")
    config = read_site_config(path, name="a", job=_job(bundle))
    assert (config.dataset_dir, config.min_cases) == (tmp_path / "data", 7)
    assert config.output_dir == tmp_path / "medseg"
    assert config.overrides(5) == {
        "learning_rate": 0.5,
        "x": 1,
        "dataset_dir": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "medseg"),
        "site": "a",
        "seed": 4,
        "num_rounds": 5,
    }


@pytest.mark.parametrize("content", [None, "min_cases: 1", "dataset_dir: x\npath: y"])
def test_site_file__missing_or_wrong(bundle, tmp_path, content):
    from medseg_kit.fl.adapters.flare.client import read_site_config

    path = tmp_path / "medseg_site.yaml"
    if content:
        path.write_text(content)
    with pytest.raises(UserError, match="dataset_dir"):
        read_site_config(path, name="a", job=_job(bundle))
