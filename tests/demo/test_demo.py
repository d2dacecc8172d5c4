"""The demonstration on two tiny sites: everything it promises is in its folder."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_kit.cli.demo import demo
from medseg_kit.study.demo.data import real_data_folder
from medseg_kit.study.demo.models import AVERAGING, FEDERATION, POOLED, SINGLE_SITE
from medseg_kit.study.demo.results import markdown_table
from medseg_kit.study.demo.run import Demo, check_folder
from medseg_kit.study.demo.settings import PHANTOMS
from medseg_kit.typing import UserError

TINY = replace(
    PHANTOMS,
    rounds=2,
    local_steps=1,
    val_interval=1,
    patients_per_site=2,
    num_outside=2,
    size=(24, 24, 24),
    channels=(2, 4, 6, 8, 10),
    shared={"spacing": [16.0] * 3, "roi_size": [32, 32, 16]},
)
MODELS = [FEDERATION, SINGLE_SITE, AVERAGING, POOLED]
ORGANS = ["liver", "spleen", "pancreas", "kidneys"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Run the demonstration once; return its folder and what it said."""
    out = tmp_path_factory.mktemp("demo") / "out"
    said: list[str] = []
    page = Demo(out, settings=TINY, say=said.append).run()
    assert page == out / "report.html"
    return out, said


@pytest.mark.slow
@pytest.mark.integration
def test_demo__table_holds_every_model_and_organ(run: tuple[Path, list[str]]) -> None:
    out, said = run
    with (out / "dice.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {(row["model"], row["label"]) for row in rows}
    assert found == {(model, organ) for model in MODELS for organ in ORGANS}
    assert all(row["n"] == "2" and 0 <= float(row["dice_mean"]) <= 1 for row in rows)
    assert (out / "dice.md").read_text(encoding="utf-8").strip() in said


@pytest.mark.slow
@pytest.mark.integration
def test_demo__segmentations_lie_on_the_grid_of_their_image(run: tuple[Path, list[str]]) -> None:
    out, _ = run
    images = sorted((out / "data" / "outside" / "images").iterdir())
    assert len(images) == TINY.num_outside
    for path in images:
        image, label = nib.load(path), nib.load(out / "segmentations" / path.name)
        assert label.shape == image.shape
        np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)


@pytest.mark.slow
@pytest.mark.integration
def test_demo__page_needs_nothing_from_outside(run: tuple[Path, list[str]]) -> None:
    out, _ = run
    html = (out / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href|url\()\s*=?\s*["']?([^"'\s>)]+)""", html)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "<script src" not in html
    assert "synthetic" in html
    for name in (*MODELS, "site-liver", 'id="curves"', 'id="overlays"', 'id="ledger"'):
        assert name in html


@pytest.mark.slow
@pytest.mark.integration
def test_demo__record_says_that_it_is_complete(run: tuple[Path, list[str]]) -> None:
    out, said = run
    record = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    assert record["complete"] is True
    headings = [line for line in said if line.startswith("\n[")]
    assert len(headings) == len(record["seconds"]) == 7
    check_folder(out)  # may be replaced by the next demonstration


@pytest.mark.slow
@pytest.mark.integration
def test_demo__page_opens_in_chromium(run: tuple[Path, list[str]], tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed: the page was not opened in a browser")
    out, _ = run
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --dump-dom"
    )
    done = subprocess.run(
        [browser, *flags.split(), f"--user-data-dir={tmp_path}", (out / "report.html").as_uri()],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    assert "Round ledger" in done.stdout
    assert done.stdout.count("<tr") > len(MODELS)


def test_check_folder__refuses_other_content(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty and holds no earlier demo"):
        check_folder(tmp_path)
    check_folder(tmp_path / "new")


def test_demo__names_known_data() -> None:
    with pytest.raises(UserError, match="unknown --data 'brain'; choose one of phantoms"):
        demo(data="brain")


def test_real_data_folder__says_how_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDSEG_DATA", raising=False)
    with pytest.raises(UserError, match="MEDSEG_DATA is not set: run it as"):
        real_data_folder()
    monkeypatch.setenv("MEDSEG_DATA", str(tmp_path))
    with pytest.raises(UserError, match="holds no folder Task04_Hippocampus"):
        real_data_folder()
    (tmp_path / "Task04_Hippocampus").mkdir()
    assert real_data_folder() == tmp_path


def test_markdown_table__shows_spread_misses_and_mean() -> None:
    row = {"model": "A", "label": "liver", "n": 2, "dice_mean": 0.5, "dice_sd": 0.1, "n_missed": 1}
    other = {**row, "label": "spleen", "dice_mean": 0.7, "dice_sd": None, "n_missed": 0}
    lines = markdown_table([row, other]).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "A",
        "0.500 ± 0.100 (1 missed)",
        "0.700",
        "0.600",
    ]
    assert len({len(line) for line in lines}) == 1
