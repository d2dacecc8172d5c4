"""Whole federations of the toy bundle: gates, failures, privacy, resumption."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from gates import assert_one_site_equals_local, global_state
from monai.bundle import ConfigParser
from toy_federation import install_bundle, make_site

from medseg_kit.fl import files
from medseg_kit.fl.client import SiteClient
from medseg_kit.fl.ledger import read_ledger
from medseg_kit.fl.messages import Reply
from medseg_kit.fl.plan import Options, read_plan
from medseg_kit.fl.server import Server
from medseg_kit.fl.simulation import InProcess, make_clients, simulate
from medseg_kit.fl.state import digest, select
from medseg_kit.fl.store import ServerStore
from medseg_kit.typing import UserError

# MONAI 1.6's LoadImage warns of an optional DICOM decoder wherever it is not installed.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")


def _options(**options):
    return Options(**{"min_cases": 1, **options})


def _records(out, kind):
    return [record for record in read_ledger(out / "ledger.jsonl") if record["type"] == kind]


def _change_config(bundle, name, **changes):
    path = bundle / "configs" / name
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))


@pytest.mark.parametrize("method", [None, "segviz"])
def test_one_site__equals_local_training(bundle, tmp_path, method):
    site = make_site(tmp_path / "sites" / "a", training=4)
    assert_one_site_equals_local(bundle, site, tmp_path, options=_options(method=method))


def test_one_site__several_local_epochs_equal_local_training(bundle, tmp_path):
    site = make_site(tmp_path / "sites" / "a", training=4)
    options = _options(overrides={"local_epochs": 2})
    assert_one_site_equals_local(bundle, site, tmp_path, options=options)


def test_pooled_step__equals_n_sites_with_one_full_batch_step(bundle, sites, tmp_path):
    overrides = {"batch_size": 8, "momentum": 0.0, "noise": 0.0, "train#lr_schedule": None}
    simulate(bundle, sites, tmp_path / "out", options=_options(rounds=1, overrides=overrides))
    pooled = tmp_path / "pooled"
    content = json.loads((sites / "a" / "datalist.json").read_text())
    content["training"] = []
    for name in "abc":
        for case in json.loads((sites / name / "datalist.json").read_text())["training"]:
            moved = {key: f"{name}/{case[key]}" for key in ("image", "label")}
            content["training"].append({**case, **moved})
        (pooled / name).parent.mkdir(exist_ok=True)
        (pooled / name).symlink_to(sites / name)
    (pooled / "datalist.json").write_text(json.dumps(content))
    simulate(
        bundle, {"pooled": pooled}, tmp_path / "p", options=_options(rounds=1, overrides=overrides)
    )
    federated, central = global_state(tmp_path / "out"), global_state(tmp_path / "p")
    start = read_plan(bundle, _options()).global_state
    for key, value in central.items():
        assert not torch.equal(value, start[key])
        torch.testing.assert_close(federated[key], value, rtol=1e-5, atol=1e-6)


def test_simulate__averaged_weights_reach_the_clients(bundle, sites, tmp_path, monkeypatch):
    received = {}
    original = SiteClient.handle

    def spy(self, request):
        received[request.kind, request.round_number, self.config.name] = dict(request.state)
        return original(self, request)

    monkeypatch.setattr(SiteClient, "handle", spy)
    simulate(bundle, sites, tmp_path / "out", options=_options(rounds=2))
    (first, _) = _records(tmp_path / "out", "round")
    for site in "abc":
        assert digest(received["train", 2, site]) == first["digest"]
    sent = [record["digest"] for record in _records(tmp_path / "out", "site")]
    assert len(set(sent)) == len(sent)
    assert first["digest"] not in sent


def test_simulate__segviz_shares_the_representation_only(bundle, tmp_path):
    for name, organ in (("a", "left"), ("b", "right")):
        make_site(tmp_path / "sites" / name, annotated=[organ])
    out = tmp_path / "out"
    simulate(bundle, tmp_path / "sites", out, options=_options(method="segviz", rounds=2))
    model = torch.load(out / "global" / "model.pt", weights_only=True)
    plan = read_plan(bundle, _options(method="segviz"))
    assert model.keys() == plan.global_state.keys()
    for record in _records(out, "site"):
        other = "right" if record["site"] == "a" else "left"
        keys = [key for key in model if not key.startswith(f"heads.{other}.")]
        assert record["expected_keys"] == record["received_keys"] == len(keys)


def test_simulate__fedprox_without_pull_is_fedavg(bundle, sites, tmp_path):
    def run(name, **options):
        return simulate(bundle, sites, tmp_path / name, options=_options(rounds=2, **options))

    plain = run("fedavg")
    assert run("zero", method="fedprox")["digest"] == plain["digest"]
    pulled = run("pulled", method="fedprox", overrides={"mu": 10.0})
    assert pulled["digest"] != plain["digest"]


def test_simulate__schedules_run_over_the_whole_federation(bundle, sites, tmp_path):
    out = tmp_path / "out"
    simulate(bundle, sites, out, options=_options())
    state = files.load_torch(next(out.glob("sites/a/client_state/round_00003_*.pt")))
    assert state["step"]["global_step"] == 3
    # cosine over 3 steps in all, at the third: 0.05 * 0.5 * (1 + cos(2 pi / 3))
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.0125)
    assert state["optimizer"]["state"]


def test_simulate__client_state_reset_differs_from_keep(bundle, sites, tmp_path):
    kept = simulate(bundle, sites, tmp_path / "keep", options=_options(rounds=2))
    options = _options(rounds=2, overrides={"client_state": "reset"})
    assert simulate(bundle, sites, tmp_path / "reset", options=options)["digest"] != kept["digest"]
    assert _records(tmp_path / "reset", "run")[0]["client_state"] == "reset"


def test_simulate__keys_that_never_leave_are_restored_after_a_restart(bundle, sites, tmp_path):
    options = _options(method="private_head")
    whole = simulate(bundle, sites, tmp_path / "whole", options=options)
    out = tmp_path / "out"
    _stop_after(bundle, sites, out, options, rounds=1)
    assert simulate(bundle, sites, out, options=options)["digest"] == whole["digest"]
    record = _records(out, "site")[0]
    keys = read_plan(bundle, options).global_state
    assert record["received_keys"] == len([k for k in keys if not k.startswith("model.2.")])


class _Killed(BaseException):
    """Ends a federation as a kill does: nothing in the package handles it."""


def _stop_after(bundle, sites, out, options, *, rounds):
    def stop(record):
        if record["round"] == rounds:
            raise _Killed

    with pytest.raises(_Killed):
        simulate(bundle, sites, out, options=options, on_round=stop)


def test_simulate__killed_at_any_write_continues_to_the_same_weights(bundle, tmp_path, monkeypatch):
    for number, name in enumerate("ab"):
        make_site(tmp_path / "sites" / name, seed=number)
    options, sites = _options(rounds=2), tmp_path / "sites"
    whole = simulate(bundle, sites, tmp_path / "whole", options=options)
    reference = (tmp_path / "whole" / "global" / "model.pt").read_bytes()
    original, moments = files.sync, 0
    for moment in range(100):
        out, calls = tmp_path / f"out{moment}", [0]

        def sync(path, *, calls=calls, moment=moment):
            calls[0] += 1
            if calls[0] > moment:
                raise _Killed
            original(path)

        for module in (files, __import__("medseg_kit.fl.store", fromlist=["sync"])):
            monkeypatch.setattr(module, "sync", sync)
        try:
            simulate(bundle, sites, out, options=options)
            break
        except _Killed:
            moments += 1
        finally:
            monkeypatch.undo()
        torch.set_num_threads(1)
        again = simulate(bundle, sites, out, options=options)
        assert again["digest"] == whole["digest"], moment
        assert len(_records(out, "site")) == 4
        assert len(_records(out, "round")) == 2
        assert digest(torch.load(out / "global" / "model.pt", weights_only=True)) == digest(
            torch.load(tmp_path / "whole" / "global" / "model.pt", weights_only=True)
        )
    assert moments > 10
    assert reference


def test_simulate__finished_federation_is_not_run_again(bundle, sites, tmp_path, monkeypatch):
    first = simulate(bundle, sites, tmp_path / "out", options=_options(rounds=1))
    monkeypatch.setattr(SiteClient, "handle", lambda *_: pytest.fail("a site was asked"))
    assert simulate(bundle, sites, tmp_path / "out", options=_options(rounds=1)) == first


def test_simulate__another_federation_in_the_folder_is_refused(bundle, sites, tmp_path):
    simulate(bundle, sites, tmp_path / "out", options=_options(rounds=1))
    with pytest.raises(UserError, match=r"with seed 0, not 5; give another --out"):
        simulate(bundle, sites, tmp_path / "out", options=_options(rounds=1, seed=5))
    other = simulate(
        bundle, sites, tmp_path / "out", options=_options(rounds=1, seed=5), resume=False
    )
    assert other["seed"] == 5


def test_simulate__half_written_ledger_line_is_dropped(bundle, sites, tmp_path):
    out = tmp_path / "out"
    _stop_after(bundle, sites, out, _options(), rounds=1)
    with (out / "ledger.jsonl").open("a") as file:
        file.write('{"type": "site", "round": 2, "site": "a"}\n{"type": "si')
    simulate(bundle, sites, out, options=_options())
    assert [record["round"] for record in _records(out, "round")] == [1, 2, 3]
    assert len(_records(out, "site")) == 9


class _Liar:
    """Wraps a client and changes its answers to ``train``."""

    def __init__(self, client, lie):
        self.client, self.lie = client, lie

    def handle(self, request):
        reply = self.client.handle(request)
        return self.lie(reply) if request.kind == "train" else reply


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
    options = _options(rounds=rounds, quorum=quorum)
    folders = {name: sites / name for name in "abc"}
    clients = make_clients(bundle, folders, out, options)
    clients.update({name: _Liar(clients[name], lie) for name, lie in liars.items()})
    server = Server(
        read_plan(bundle, options), list(folders), ServerStore(out), ask=InProcess(clients)
    )
    return server.run()


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (_nan, "NaN or infinite values in 1 keys"),
        (_missing_key, "wrong keys: 1 missing"),
        (_wrong_shape, "wrong shapes: "),
        (_inflated, "says it has 1000000 training cases, in the handshake 2"),
        (_old_round, "answered train of round 0"),
        (_nothing, "training cases"),
    ],
)
def test_lying_site__is_named_left_out_and_recorded(bundle, sites, tmp_path, lie, message):
    out = tmp_path / "out"
    summary = _federate_with(bundle, sites, out, {"b": lie})
    records = {record["site"]: record for record in _records(out, "site")}
    assert records["b"]["status"] == "failed"
    assert message in records["b"]["failure"]
    assert {records["a"]["status"], records["c"]["status"]} == {"ok"}
    assert summary["last_round"]["failures"].keys() == {"b"}
    # the others' weights are renormalised: the same as a federation without b
    (tmp_path / "two").mkdir()
    for name in "ac":
        (tmp_path / "two" / name).symlink_to(sites / name)
    alone = simulate(bundle, tmp_path / "two", tmp_path / "out2", options=_options(rounds=1))
    assert summary["digest"] == alone["digest"]


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
        simulate(bundle, sites, tmp_path / "out", options=_options(quorum=4))


def test_failing_site__error_leaves_without_paths_and_it_returns(bundle, sites, tmp_path):
    image = next((sites / "b" / "images").glob("*.nii"))
    content = image.read_bytes()
    image.write_bytes(b"not an image")
    out = tmp_path / "out"

    def repair(record):
        image.write_bytes(content)

    simulate(bundle, sites, out, options=_options(rounds=2), on_round=repair)
    first, second = (r for r in _records(out, "site") if r["site"] == "b")
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
        options=_options(rounds=2),
        on_round=lambda _: datalist.write_text(content),
    )
    assert [r["round"] for r in _records(out, "site") if r["site"] == "b"] == [2]
    events = [record["event"] for record in _records(out, "event")]
    assert events[0].startswith("not joined: UserError")
    assert events[1] == "joined"


@pytest.mark.parametrize("change", ["version", "config", "organs", "network"])
def test_handshake__refuses_another_bundle_and_names_both_sides(bundle, sites, tmp_path, change):
    other = install_bundle(tmp_path / "elsewhere" / "toy_bundle")
    if change == "version":
        (other / "configs" / "metadata.json").write_text('{"version": "0.2.0"}')
        message = "site 'b' has bundle_version '0.2.0', the server has '0.1.0'"
    elif change == "organs":
        _change_config(other, "train.yaml", organs=["right", "left"])
        message = "site 'b'|label"
    else:
        _change_config(other, "train.yaml", learning_rate=0.5)
        message = "site 'b' has config '.*', the server has '.*'"
    options = _options(rounds=1)
    folders = {name: sites / name for name in "abc"}
    clients = make_clients(bundle, folders, tmp_path / "out", options)
    if change == "network":
        site = {"b": sites / "b"}
        (sites / "b" / "site.yaml").write_text("overrides: {network_def#channels: [6, 8]}")
        clients.update(make_clients(bundle, site, tmp_path / "out", options))
        message = (
            r"site 'b' has the key model\.0.* as float32\[6.*, the server has it as float32\[4"
        )
    else:
        clients.update(make_clients(other, {"b": sites / "b"}, tmp_path / "out", options))
    server = Server(
        read_plan(bundle, options),
        list("abc"),
        ServerStore(tmp_path / "out"),
        ask=InProcess(clients),
    )
    if change == "organs":  # the site's own data do not fit its bundle, it cannot even start
        server.run()
        assert "labels the organs" in _records(tmp_path / "out", "event")[0]["event"]
        return
    with pytest.raises(UserError, match=message):
        server.run()


def test_min_cases__suppresses_metrics_and_deploys_the_last_round(bundle, sites, tmp_path):
    out = tmp_path / "out"
    summary = simulate(bundle, sites, out, options=Options(rounds=2, min_cases=5))
    assert summary["deployed_round"] == 2
    assert summary["deployed_metric"] is None
    assert summary["selection"].startswith("last round")
    for record in _records(out, "site"):
        assert record["metrics"] is record["local_metrics"] is None
        assert record["metrics_suppressed"] == "1 validation cases, fewer than min_cases=5"


def test_best_round__is_deployed(bundle, sites, tmp_path):
    out = tmp_path / "out"
    deployed = {}

    def remember(record):
        deployed[record["round"]] = (record["mean_metric"], global_state(out))

    summary = simulate(bundle, sites, out, options=_options(rounds=3, seed=3), on_round=remember)
    best = max(deployed, key=lambda number: (deployed[number][0], -number))
    assert summary["deployed_round"] == best
    model = torch.load(out / "global" / "model.pt", weights_only=True)
    assert digest(model) == digest(deployed[best][1])


def test_site_without_validation_cases__takes_part(bundle, tmp_path):
    make_site(tmp_path / "sites" / "a")
    make_site(tmp_path / "sites" / "b", validation=0)
    summary = simulate(bundle, tmp_path / "sites", tmp_path / "out", options=_options(rounds=1))
    assert summary["selection"].startswith("last round")
    assert summary["last_round"]["num_reporting"] == 1


def test_ledger__compares_sites_and_federated_with_local(bundle, sites, tmp_path):
    out = tmp_path / "out"
    simulate(bundle, sites, out, options=_options(rounds=2))
    last = [record for record in _records(out, "site") if record["round"] == 2]
    values = {record["site"]: record["metrics"]["val_mean_dice"] for record in last}
    for record in last:
        gain = values[record["site"]] - record["local_metrics"]["val_mean_dice"]
        assert record["federated_minus_local"] == pytest.approx(gain)
        assert record["update_norm"] > 0
        assert record["bytes_sent"] == record["bytes_received"] > 0
        assert record["seconds"] > 0
    summary = _records(out, "round")[-1]
    mean = sum(values.values()) / 3
    assert summary["mean_metric"] == pytest.approx(mean)
    assert summary["worst_site_gap"] == pytest.approx(mean - min(values.values()))
    assert values[summary["worst_site"]] == min(values.values())


def test_nothing_private_is_in_the_servers_files(bundle, sites, tmp_path):
    out = tmp_path / "out"
    simulate(bundle, sites, out, options=_options(rounds=1))
    for name in ("ledger.jsonl", "summary.json", "federation.json"):
        text = (out / name).read_text()
        assert "patient" not in text
        assert str(tmp_path) not in text


def test_site_file__overrides_belong_to_the_site(bundle, sites, tmp_path):
    plain = simulate(bundle, sites, tmp_path / "plain", options=_options(rounds=1))
    (sites / "b" / "site.yaml").write_text("name: b\noverrides: {learning_rate: 0.5}\n")
    own = simulate(bundle, sites, tmp_path / "own", options=_options(rounds=1))
    one, two = (
        {record["site"]: record["digest"] for record in _records(tmp_path / name, "site")}
        for name in ("plain", "own")
    )
    assert (one["a"], one["c"]) == (two["a"], two["c"])
    assert one["b"] != two["b"]
    assert own["digest"] != plain["digest"]


@pytest.mark.parametrize("content", ["[1, 2]", "dataset_dir: /elsewhere", "overrides: [a]"])
def test_site_file__wrong_content(bundle, sites, tmp_path, content):
    (sites / "b" / "site.yaml").write_text(content)
    with pytest.raises(UserError, match=r"site.yaml: give `name: SITE` and `overrides"):
        simulate(bundle, sites, tmp_path / "out", options=_options())


def test_misspelt_override__is_an_error(bundle, sites, tmp_path):
    with pytest.raises(UserError, match="did you mean 'learning_rate'"):
        simulate(bundle, sites, tmp_path / "out", options=_options(overrides={"learning_rat": 1}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "segvis"}, "method 'segvis' is unknown to toy_bundle; it has .*segviz"),
        ({"overrides": {"client_state": "forget"}}, "client_state one of keep, reset"),
        ({"overrides": {"strategy": {"_target_": "torch.nn.Identity"}}}, "is a Identity"),
        ({"initial_weights": "nowhere.pt"}, "nowhere.pt do not exist"),
    ],
)
def test_read_plan__wrong_options(bundle, options, message):
    with pytest.raises(UserError, match=message):
        read_plan(bundle, _options(**options))


def test_initial_weights__are_where_the_federation_starts(bundle, tmp_path):
    state = read_plan(bundle, _options(seed=7)).global_state
    torch.save(state, tmp_path / "model.pt")
    plan = read_plan(bundle, _options(initial_weights=tmp_path / "model.pt"))
    assert digest(plan.global_state) == digest(state)
    assert digest(read_plan(bundle, _options()).global_state) != digest(state)


def test_deployed_network__is_that_of_inference(bundle, sites, tmp_path):
    network = ConfigParser.load_config_file(str(bundle / "configs" / "train.yaml"))["network_def"]
    (bundle / "configs" / "inference.yaml").write_text(
        yaml.safe_dump({"network_def": network, "bundle_root": "."})
    )
    out = tmp_path / "out"
    simulate(bundle, sites, out, options=_options(rounds=1))
    model = torch.load(out / "global" / "model.pt", weights_only=True)
    assert model.keys() == read_plan(bundle, _options()).global_state.keys()
    network["out_channels"], network["channels"] = 3, [4, 8, 16]
    network["strides"] = [2, 2]
    (bundle / "configs" / "inference.yaml").write_text(
        yaml.safe_dump({"network_def": network, "bundle_root": "."})
    )
    with pytest.raises(UserError, match=r"deploys .* keys that training lacks"):
        simulate(bundle, sites, tmp_path / "out2", options=_options(rounds=1))


def test_select__used_for_partial_states():
    assert select({"a": torch.zeros(1), "b": torch.zeros(1)}, "a".__eq__).keys() == {"a"}
