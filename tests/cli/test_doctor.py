"""The doctor's one screen."""

from __future__ import annotations

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
