"""The doctor's one screen."""

from __future__ import annotations

import shutil

from medseg_kit.cli.doctor import doctor


def test_doctor__names_bundles_that_would_not_run(toy_bundle, monkeypatch, capsys):
    monkeypatch.setenv("MEDSEG_BUNDLES", str(toy_bundle.parent))
    assert doctor() == 1
    out = capsys.readouterr().out
    for part in ("torch", "GPU", "memory", "NVIDIA FLARE", "MONAI Label", "Chromium"):
        assert part in out
    assert "inference.yaml does not exist" in next(
        line for line in out.splitlines() if "toy_mr_net" in line
    )


def test_doctor__a_bundle_that_ships_no_weights_is_no_fault(
    repository, tmp_path, monkeypatch, capsys
):
    source = repository / "bundles" / "pelvis_mr_cowpro"
    shutil.copytree(source, tmp_path / source.name)
    monkeypatch.setenv("MEDSEG_BUNDLES", str(tmp_path))
    assert doctor() == 0
    assert "ships no weights" in capsys.readouterr().out
