"""FedCoWPro: a client with CT and one with MR, in one process and in NVIDIA FLARE's simulator."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from gates import global_state, records

from medseg_kit.data.phantom_anatomy import PELVIS
from medseg_kit.data.phantoms import Scanner, write_phantom_dataset
from medseg_kit.fl.plan import Options
from medseg_kit.fl.simulation import simulate
from medseg_kit.fl.state import digest, weighted_mean

ORGANS = ("bladder", "rectum", "sigmoid colon", "femoral head")
TINY = {
    "image_size": 32,
    "max_steps": 2,
    "amp": "off",
    "encoder#widen_factor": 0.125,
}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clients")
    for name in ("ct", "mr"):
        write_phantom_dataset(
            folder / name,
            organs=ORGANS,
            counts={"support": 1, "training": 1, "validation": 1},
            size=(32, 32, 16),
            scanner=Scanner(modality=name.upper()),
            anatomy=PELVIS,
        )
    return folder


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flare__gives_the_weights_of_one_process(repository, sites, tmp_path, monkeypatch):
    pytest.importorskip("nvflare")
    from medseg_kit.fl.adapters.flare import recipe

    bundle = repository / "bundles" / "pelvis_mr_cowpro"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = Options(rounds=2, overrides=TINY)
    one = simulate(bundle, sites, tmp_path / "one", options=options)
    rows = [row for row in records(tmp_path / "one", "site") if row["status"] == "ok"]
    assert len(rows) == 4
    assert all(row["num_steps"] == 2 and row["num_samples"] == 2 for row in rows)

    two = recipe.simulate(bundle, sites, tmp_path / "two", options=options)
    assert two["digest"] == one["digest"]
    assert digest(global_state(tmp_path / "two")) == digest(global_state(tmp_path / "one"))


def test_weights__are_those_of_slices_used():
    """1,500 and 500 slices weigh 2/3 and 1/3 capped, 3/4 and 1/4 uncapped."""
    from medseg_kit.data.episodes import EpisodeLoader

    for cap, expected in ((1000, 2 / 3), (None, 3 / 4)):
        used = {
            name: EpisodeLoader(range(number), max_steps=cap).num_samples
            for name, number in (("large", 1500), ("small", 500))
        }
        mean = weighted_mean({"large": {"w": torch.ones(1)}, "small": {"w": torch.zeros(1)}}, used)
        assert float(mean["w"]) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_client_without_a_support__trains_and_says_why_it_reports_no_metric(
    repository, sites, tmp_path
):
    """A scan that it trains on never stands in for the support."""
    shutil.copytree(sites, tmp_path / "sites")
    path = tmp_path / "sites" / "mr" / "datalist.json"
    content = json.loads(path.read_text())
    content["training"] = [case for case in content["training"] if not case.get("support")]
    path.write_text(json.dumps(content))
    bundle = repository / "bundles" / "pelvis_mr_cowpro"
    options = Options(rounds=1, overrides=TINY, min_cases=1)
    simulate(bundle, tmp_path / "sites", tmp_path / "out", options=options)
    found = {row["site"]: row for row in records(tmp_path / "out", "site")}
    assert found["mr"]["status"] == "ok"
    assert found["ct"]["metrics"] is not None
    assert found["mr"]["metrics"] is None
    assert "needs the prototypes of a support scan" in found["mr"]["metrics_suppressed"]
