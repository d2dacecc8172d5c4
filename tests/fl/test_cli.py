"""`medseg federate` on the toy bundle."""

from __future__ import annotations

import sys

import pytest
from toy_federation import make_site

from medseg_kit.cli.federate import describe_summary, load_recipe, simulate
from medseg_kit.cli.main import main
from medseg_kit.typing import UserError

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")


def test_simulate__prints_the_outcome(bundle, tmp_path, capsys):
    make_site(tmp_path / "sites" / "a")
    arguments = ["federate", "simulate", str(bundle), "--sites", str(tmp_path / "sites")]
    arguments += ["--out", str(tmp_path / "out"), "--rounds", "1", "--min_cases", "1"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--set", "learning_rate=0.01,noise=0"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "1 rounds, 1 sites, 0 failed answers" in out
    assert "deployed: round 1, val_mean_dice" in out
    assert (tmp_path / "out" / "global" / "model.pt").is_file()


def test_simulate__folder_without_sites(bundle, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["federate", "simulate", str(bundle), "--sites", str(tmp_path), "--out", "x"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no site folders")


def test_simulate__unknown_engine(bundle, tmp_path):
    with pytest.raises(UserError, match="unknown --engine 'flower'; choose one of in_process"):
        simulate(str(bundle), sites=str(tmp_path), out=str(tmp_path), engine="flower")


def test_load_recipe__without_flare(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvflare", None)
    with pytest.raises(UserError, match="pip install"):
        load_recipe()


def test_simulate__broken_site_file_is_named(bundle, tmp_path, capsys):
    site = make_site(tmp_path / "sites" / "a")
    (site / "site.yaml").write_text("overrides: [1")
    words = ["federate", "simulate", str(bundle), "--sites", str(tmp_path / "sites")]
    with pytest.raises(SystemExit, match="1"):
        main([*words, "--out", str(tmp_path / "out"), "--rounds", "1"])
    assert "site.yaml is no valid YAML" in capsys.readouterr().err


def test_describe_summary__without_metrics():
    summary = {
        "num_rounds": 2,
        "sites": ["a"],
        "failed_answers": 1,
        "deployed_round": 2,
        "deployed_metric": None,
        "key_metric": None,
        "selection": "last round",
        "last_round": {"worst_site": None, "worst_site_gap": None},
    }
    assert describe_summary(summary) == (
        "2 rounds, 1 sites, 1 failed answers\ndeployed: round 2 (last round)"
    )
