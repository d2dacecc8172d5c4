"""Whole federations of the toy bundle: ledger, deployed weights, options, privacy."""

from __future__ import annotations

import pytest
import torch
import yaml
from gates import global_state, records, toy_options
from toy_federation import make_site

from medseg_kit.files import only_process
from medseg_kit.fl.plan import Options, read_plan
from medseg_kit.fl.simulation import simulate
from medseg_kit.fl.state import digest
from medseg_kit.typing import UserError

# MONAI 1.6's LoadImage warns of an optional DICOM decoder wherever it is not installed.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")


def test_min_cases__suppresses_metrics_and_deploys_the_last_round(bundle, sites, tmp_path):
    out = tmp_path / "out"
    summary = simulate(bundle, sites, out, options=Options(rounds=2, min_cases=5))
    assert summary["deployed_round"] == 2
    assert summary["deployed_metric"] is None
    assert summary["selection"].startswith("last round")
    for record in records(out, "site"):
        assert record["metrics"] is record["local_metrics"] is None
        assert record["metrics_suppressed"] == "1 validation cases, fewer than min_cases=5"


def test_best_round__is_deployed(finished):
    means = {r["round"]: r["mean_metric"] for r in records(finished.out, "round")}
    best = max(means, key=lambda number: (means[number], -number))
    assert finished.summary["deployed_round"] == best
    assert finished.summary["deployed_metric"] == means[best]
    model = torch.load(finished.out / "global" / "model.pt", weights_only=True)
    assert digest(model) == digest(finished.states[best])


def test_site_without_validation_cases__takes_part(bundle, tmp_path):
    make_site(tmp_path / "sites" / "a")
    make_site(tmp_path / "sites" / "b", validation=0)
    summary = simulate(bundle, tmp_path / "sites", tmp_path / "out", options=toy_options(rounds=1))
    assert summary["selection"].startswith("last round")
    assert summary["last_round"]["num_reporting"] == 1


def test_ledger__compares_sites_and_federated_with_local(finished):
    last = [record for record in records(finished.out, "site") if record["round"] == 3]
    values = {record["site"]: record["metrics"]["val_mean_dice"] for record in last}
    for record in last:
        gain = values[record["site"]] - record["local_metrics"]["val_mean_dice"]
        assert record["federated_minus_local"] == pytest.approx(gain)
        assert record["update_norm"] > 0
        assert record["losses"]
        assert record["bytes_sent"] == record["bytes_received"] > 0
        assert record["seconds"] > 0
    summary = records(finished.out, "round")[-1]
    mean = sum(values.values()) / 3
    assert summary["mean_metric"] == pytest.approx(mean)
    assert summary["worst_site_gap"] == pytest.approx(mean - min(values.values()))
    assert values[summary["worst_site"]] == min(values.values())


def test_servers_files__hold_nothing_private(finished):
    for name in ("ledger.jsonl", "summary.json", "federation.json"):
        text = (finished.out / name).read_text()
        assert "patient" not in text
        assert str(finished.out.parent) not in text


def test_site_file__overrides_belong_to_the_site(bundle, sites, tmp_path, finished):
    (sites / "b" / "site.yaml").write_text("name: b\noverrides: {momentum: 0.5, noise: 0.0}\n")
    simulate(bundle, sites, tmp_path / "own", options=toy_options(rounds=1))
    own, plain = (
        {record["site"]: record["digest"] for record in records(out, "site")[:3]}
        for out in (tmp_path / "own", finished.out)
    )
    assert own["b"] != plain["b"]


@pytest.mark.parametrize("content", ["[1, 2]", "dataset_dir: /elsewhere", "overrides: [a]"])
def test_site_file__wrong_content(bundle, sites, tmp_path, content):
    (sites / "b" / "site.yaml").write_text(content)
    with pytest.raises(UserError, match=r"site.yaml: give `name: SITE` and `overrides"):
        simulate(bundle, sites, tmp_path / "out", options=toy_options())


def test_misspelt_override__is_an_error(bundle, sites, tmp_path):
    with pytest.raises(UserError, match="did you mean 'learning_rate'"):
        simulate(
            bundle, sites, tmp_path / "out", options=toy_options(overrides={"learning_rat": 1})
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "segvis"}, "method 'segvis' is unknown to toy_bundle; it has .*segviz"),
        ({"rounds": 0}, r"rounds must be at least 1 \(is 0\)"),
        ({"overrides": {"val_interval": 0}}, "val_interval must be at least 1 round"),
        ({"overrides": {"client_state": "forget"}}, "client_state one of keep, reset"),
        ({"overrides": {"strategy": {"_target_": "torch.nn.Identity"}}}, "is a Identity"),
        ({"initial_weights": "nowhere.pt"}, "nowhere.pt does not exist"),
    ],
)
def test_read_plan__wrong_options(bundle, options, message):
    with pytest.raises(UserError, match=message):
        read_plan(bundle, toy_options(**options))


def test_initial_weights__are_where_the_federation_starts(bundle, tmp_path):
    state = read_plan(bundle, toy_options(seed=7)).global_state
    torch.save(state, tmp_path / "model.pt")
    plan = read_plan(bundle, toy_options(initial_weights=tmp_path / "model.pt"))
    assert digest(plan.global_state) == digest(state)
    assert digest(read_plan(bundle, toy_options()).global_state) != digest(state)


def _write_inference(bundle, network):
    content = yaml.safe_dump({"network_def": network, "bundle_root": "."})
    (bundle / "configs" / "inference.yaml").write_text(content)


def test_deployed_network__is_that_of_inference(bundle, tmp_path):
    network = yaml.safe_load((bundle / "configs" / "train.yaml").read_text())["network_def"]
    _write_inference(bundle, network)
    make_site(tmp_path / "sites" / "a")
    simulate(bundle, tmp_path / "sites", tmp_path / "out", options=toy_options(rounds=1))
    model = torch.load(tmp_path / "out" / "global" / "model.pt", weights_only=True)
    assert model.keys() == read_plan(bundle, toy_options()).global_state.keys()


def test_deployed_network__with_keys_that_training_lacks(bundle, sites, tmp_path):
    network = yaml.safe_load((bundle / "configs" / "train.yaml").read_text())["network_def"]
    _write_inference(bundle, {**network, "channels": [4, 8, 16], "strides": [2, 2]})
    with pytest.raises(UserError, match=r"deploys .* keys that training lacks"):
        simulate(bundle, sites, tmp_path / "out", options=toy_options(rounds=1))


def test_deployed_network__is_the_part_that_training_names(bundle, sites, tmp_path):
    path = bundle / "configs" / "train.yaml"
    path.write_text(path.read_text() + "\ndeployed: $@network_def.model\n")
    simulate(bundle, sites, tmp_path / "out", options=toy_options(rounds=1))
    model = torch.load(tmp_path / "out" / "global" / "model.pt", weights_only=True)
    whole = global_state(tmp_path / "out")
    assert {f"model.{key}" for key in model} == whole.keys()
    assert all(torch.equal(value, whole[f"model.{key}"]) for key, value in model.items())


def test_output_folder__belongs_to_one_process(bundle, sites, tmp_path):
    with only_process(tmp_path / "out"), pytest.raises(UserError, match="in use by another"):
        simulate(bundle, sites, tmp_path / "out", options=toy_options(rounds=1))
