"""A study of the hippocampus bundle on synthetic patients: one site against a federation."""

import pytest
import yaml

from medseg_kit.cli.data import phantoms
from medseg_kit.cli.study import study
from medseg_kit.report.comparison import read_records
from medseg_kit.report.study import write_study_report

SIZES = {
    "steps_per_epoch": 1,
    "batch_size": 2,
    "roi_size": [32, 32, 32],
    "val_interval": 1,
    "amp": "off",
}
PREDICT = {"roi_size": [32, 32, 32]}


def write_study(folder, bundle):
    local = {
        "name": "local",
        "mode": "train",
        "data": "sites/site-anterior",
        "overrides": SIZES | {"train#trainer#max_epochs": 2},
        "inference": {"overrides": PREDICT | {"network_def#heads": ["anterior"]}},
        "organs": ["anterior"],
    }
    federated = {
        "name": "conventional",
        "mode": "federate",
        "sites": "sites",
        "rounds": 2,
        "min_cases": 1,
        "overlays": ["methods/conventional_marginal.yaml"],
        "overrides": SIZES,
        "inference": {"overlays": ["methods/plain_network.yaml"], "overrides": PREDICT},
    }
    content = {
        "bundle": str(bundle),
        "test": {"data": "outside"},
        "budget": {"local_steps": 2},
        "runs": [local, federated],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "study.yaml")


@pytest.mark.slow
@pytest.mark.integration
def test_study__bundle_trained_and_federated_with_equal_steps(repository, tmp_path):
    phantoms(
        str(tmp_path),
        organs="anterior,posterior",
        patients_per_site=5,
        num_outside=2,
        size="32,32,32",
        modality="MR",
        anatomy="hippocampus",
    )
    file = write_study(tmp_path, repository / "bundles" / "hippocampus_mr_segviz")
    assert study(file, out=str(tmp_path / "out")) == 0
    local, federated = read_records(tmp_path / "out")
    assert local["local_steps"] == federated["local_steps"] == 2
    assert {row["label"] for row in local["cases"]} == {"anterior"}
    assert {row["label"] for row in federated["cases"]} == {"anterior", "posterior"}
    assert all(len(record["curves"][0]["points"]) == 2 for record in (local, federated))
    assert local["options"]["type"].endswith("SegVizStep")
    assert federated["options"]["type"].endswith("SupervisedStep")
    assert federated["options"]["strategy"]["type"].endswith("FedAvg")
    report = write_study_report(tmp_path / "out", tmp_path / "report")
    assert report["budget"]["equal"]
    assert len(list((tmp_path / "report" / "overlays").glob("*.png"))) == 6
