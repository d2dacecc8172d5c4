"""Sites that lie, fail, differ or come late: named, left out, recorded."""

from __future__ import annotations

import json

import pytest
import yaml
from gates import records, toy_options
from toy_federation import install_bundle, make_sites

from medseg_kit.engines.step import TrainStep
from medseg_kit.fl.messages import Reply
from medseg_kit.fl.plan import read_plan
from medseg_kit.fl.server import Server
from medseg_kit.fl.simulation import InProcess, make_clients, simulate
from medseg_kit.fl.store import ServerStore
from medseg_kit.typing import UserError

# MONAI 1.6's LoadImage warns of an optional DICOM decoder wherever it is not installed.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")


class _Liar:
    """Wraps a client and changes its answers of one kind."""

    def __init__(self, client, lie, kind="train"):
        self.client, self.lie, self.kind = client, lie, kind

    def handle(self, request):
        reply = self.client.handle(request)
        return self.lie(reply) if request.kind == self.kind else reply


def _nan(reply):
    reply.state[next(iter(reply.state))].fill_(float("nan"))
    return reply


def _missing_key(reply):
    reply.state.pop(next(iter(reply.state)))
    return reply


def _wrong_shape(reply):
    key = next(iter(reply.state))
    reply.state[key] = reply.state[key][:1]
    return reply


def _inflated(reply):
    reply.content["num_samples"] = 10**6
    return reply


def _old_round(reply):
    reply.round_number -= 1
    return reply


def _nothing(reply):
    return Reply(reply.site, reply.kind, reply.round_number)


def _federate_with(bundle, sites, out, liars, *, quorum=None, rounds=1):
    options = toy_options(rounds=rounds, quorum=quorum)
    folders = {name: sites / name for name in "abc"}
    clients = make_clients(bundle, folders, out, options)
    clients.update({name: _Liar(clients[name], lie) for name, lie in liars.items()})
    server = Server(
        read_plan(bundle, options), list(folders), ServerStore(out), ask=InProcess(clients)
    )
    return server.run()


@pytest.fixture(scope="module")
def without_b(tmp_path_factory):
    """Digest after one round of the sites a and c alone."""
    folder = tmp_path_factory.mktemp("two")
    bundle, sites = install_bundle(folder / "toy_bundle"), make_sites(folder / "sites")
    two = {name: sites / name for name in "ac"}
    return simulate(bundle, two, folder / "out", options=toy_options(rounds=1))["digest"]


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (_nan, "NaN or infinite values in 1 keys"),
        (_missing_key, "wrong keys: 1 missing"),
        (_wrong_shape, "wrong shapes: "),
        (_inflated, "says it has 1000000 samples, in the handshake 2"),
        (_old_round, "answered train of round 0"),
        (_nothing, "says it has None samples"),
    ],
)
def test_lying_site__is_named_left_out_and_recorded(
    bundle, sites, tmp_path, lie, message, without_b
):
    out = tmp_path / "out"
    summary = _federate_with(bundle, sites, out, {"b": lie})
    found = {record["site"]: record for record in records(out, "site")}
    assert found["b"]["status"] == "failed"
    assert message in found["b"]["failure"]
    assert {found["a"]["status"], found["c"]["status"]} == {"ok"}
    assert summary["last_round"]["failures"].keys() == {"b"}
    # the others' weights are renormalised: the same as a federation without b
    assert summary["digest"] == without_b


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [({"val_mean_dice": float("nan")}, "is nan"), ({"x": "high"}, "'high'"), ([0.9], "a list")],
)
def test_lying_site__metrics_do_not_spoil_the_mean(bundle, sites, tmp_path, metrics, problem):
    def lie(reply):
        reply.content["metrics"] = metrics
        return reply

    options, out = toy_options(rounds=1), tmp_path / "out"
    clients = make_clients(bundle, {name: sites / name for name in "abc"}, out, options)
    clients["b"] = _Liar(clients["b"], lie, kind="validate")
    store = ServerStore(out)
    Server(read_plan(bundle, options), list("abc"), store, ask=InProcess(clients)).run()
    found = {record["site"]: record for record in records(out, "site")}
    assert found["b"]["metrics"] is None
    assert problem in found["b"]["metrics_suppressed"]
    summary = records(out, "round")[0]
    assert summary["num_reporting"] == 2
    assert summary["mean_metric"] == pytest.approx(summary["mean_metric"], nan_ok=False)


def test_training__the_round_after_a_failure_trains(bundle, sites, tmp_path, monkeypatch):
    calls, optimise = [], TrainStep._optimise

    def fail_once(step, engine, loss, losses):
        calls.append(step)
        if len(calls) == 1:
            raise FloatingPointError("injected")
        optimise(step, engine, loss, losses)

    monkeypatch.setattr(TrainStep, "_optimise", fail_once)
    folders = {name: sites / name for name in "ab"}
    simulate(bundle, folders, tmp_path / "out", options=toy_options(rounds=2, quorum=1))
    found = {(row["round"], row["site"]): row for row in records(tmp_path / "out", "site")}
    assert "injected" in str(found[1, "a"])
    assert [found[2, name]["status"] for name in "ab"] == ["ok", "ok"]
    assert found[2, "a"]["update_norm"] > 0
    assert found[2, "a"]["num_steps"] == found[2, "b"]["num_steps"] > 0


def test_handshake__counts_that_are_none(bundle, sites, tmp_path):
    def lie(reply):
        reply.content["num_samples"] = "many"
        return reply

    options = toy_options(rounds=1)
    clients = make_clients(bundle, {name: sites / name for name in "ab"}, tmp_path, options)
    clients["b"] = _Liar(clients["b"], lie, kind="hello")
    server = Server(
        read_plan(bundle, options), list("ab"), ServerStore(tmp_path), ask=InProcess(clients)
    )
    with pytest.raises(UserError, match="site 'b' has 'many' as num_samples"):
        server.run()


def test_quorum__stops_with_the_reasons(bundle, sites, tmp_path):
    with pytest.raises(
        UserError, match=r"round 1: 1 of 3 sites answered, the quorum is 2 \(a: NaN"
    ):
        _federate_with(bundle, sites, tmp_path / "out", {"a": _nan, "b": _missing_key})
    assert (
        _federate_with(bundle, sites, tmp_path / "out2", {"a": _nan, "b": _missing_key}, quorum=1)[
            "failed_answers"
        ]
        == 2
    )


def test_quorum__that_cannot_be_met(bundle, sites, tmp_path):
    with pytest.raises(UserError, match="quorum 4 must lie between 1 and the 3 sites"):
        simulate(bundle, sites, tmp_path / "out", options=toy_options(quorum=4))


def test_failing_site__error_leaves_without_paths_and_it_returns(bundle, sites, tmp_path):
    image = sorted((sites / "b" / "images").glob("*.nii"))[0]
    content = image.read_bytes()
    image.write_bytes(b"not an image")
    out = tmp_path / "out"

    def repair(record):
        image.write_bytes(content)

    simulate(bundle, sites, out, options=toy_options(rounds=2), on_round=repair)
    first, second = (r for r in records(out, "site") if r["site"] == "b")
    assert first["status"] == "failed"
    for secret in (str(tmp_path), "patient", ".nii", "/"):
        assert secret not in first["failure"]
    assert "not an image" not in first["failure"]
    assert image.name in (out / "sites" / "b" / "errors.log").read_text()
    assert second["status"] == "ok"


def test_site_that_cannot_start__joins_later(bundle, sites, tmp_path):
    datalist = sites / "b" / "datalist.json"
    content = datalist.read_text()
    datalist.write_text("{}")
    out = tmp_path / "out"
    simulate(
        bundle,
        {name: sites / name for name in "abc"},
        out,
        options=toy_options(rounds=2),
        on_round=lambda _: datalist.write_text(content),
    )
    assert [r["round"] for r in records(out, "site") if r["site"] == "b"] == [2]
    events = [record["event"] for record in records(out, "event")]
    assert events[0].startswith("not joined: UserError")
    assert events[1] == "joined"


def _change_config(bundle, name, **changes):
    path = bundle / "configs" / name
    content = yaml.safe_load(path.read_text())
    merged = {**content, **changes}
    path.write_text(json.dumps(merged))  # JSON is YAML, too


def _federate_with_site_b_from(other, bundle, sites, out):
    options = toy_options(rounds=1)
    clients = make_clients(bundle, {name: sites / name for name in "abc"}, out, options)
    clients.update(make_clients(other, {"b": sites / "b"}, out, options))
    store = ServerStore(out)
    return Server(read_plan(bundle, options), list("abc"), store, ask=InProcess(clients)).run()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("metadata.json", {"version": "0.2.0"}, "bundle_version '0.2.0', the server has '0.1.0'"),
        ("train.yaml", {"learning_rate": 0.5}, "config '.*', the server has '.*'"),
    ],
)
def test_handshake__refuses_another_bundle(bundle, sites, tmp_path, name, changes, message):
    other = install_bundle(tmp_path / "elsewhere" / "toy_bundle")
    _change_config(other, name, **changes)
    with pytest.raises(UserError, match=f"site 'b' has {message}"):
        _federate_with_site_b_from(other, bundle, sites, tmp_path / "out")
    assert "not joined" in records(tmp_path / "out", "event")[0]["event"]


def test_handshake__refuses_another_network(bundle, sites, tmp_path):
    (sites / "b" / "site.yaml").write_text("overrides: {network_def#channels: [6, 8]}")
    message = r"site 'b' has the key model\.0.* as float32\[6.*, the server has it as float32\[4"
    with pytest.raises(UserError, match=message):
        simulate(bundle, sites, tmp_path / "out", options=toy_options(rounds=1))


def test_handshake__data_that_do_not_fit_the_bundle(bundle, sites, tmp_path):
    other = install_bundle(tmp_path / "elsewhere" / "toy_bundle")
    _change_config(other, "train.yaml", organs=["right", "left"])
    summary = _federate_with_site_b_from(other, bundle, sites, tmp_path / "out")
    assert summary["last_round"]["sites_ok"] == ["a", "c"]
    assert "labels the organs" in records(tmp_path / "out", "event")[0]["event"]
