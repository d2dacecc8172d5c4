"""The real public sets below ``MEDSEG_DATA``: counts, units and sites as published."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_kit.data.checks import check_pair
from medseg_kit.data.datalist import SECTIONS, load_datalist, read_datalist
from medseg_kit.data.plan import make_plan
from medseg_kit.data.pooling import load_pooled_datalist
from medseg_kit.data.prepare import expected_values, prepare_dataset
from medseg_kit.data.verify import verify_dataset

ORGANS = ["liver", "spleen", "pancreas", "kidneys"]


@pytest.fixture(scope="module")
def source() -> Path:
    folder = os.environ.get("MEDSEG_DATA")
    if not folder:
        pytest.skip("MEDSEG_DATA is not set (folder with Task04_Hippocampus and btcv)")
    return Path(folder)


@pytest.fixture(scope="module")
def btcv(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("btcv") / "out"
    prepare_dataset(make_plan("btcv_8bit", source=source, sites="four_organs"), out)
    return out


@pytest.mark.slow
def test_hippocampus__prepares_with_disjoint_sites(source: Path, tmp_path: Path) -> None:
    organs = ["anterior", "posterior"]
    plan = make_plan("hippocampus", source=source, sites="two_parts")
    report = prepare_dataset(plan, tmp_path / "out")
    assert {w["kind"] for w in report["warnings"]} <= {"incomplete-set"}
    assert report["cases"]["test"] == 40
    seen: set[str] = set()
    for value, part in enumerate(organs, start=1):
        folder = tmp_path / "out" / "sites" / f"site-{part}"
        cases = load_datalist(folder, "training", organs=organs)
        subjects = {
            case["subject"] for section in SECTIONS for case in read_datalist(folder)[section]
        }
        assert not seen & subjects
        seen |= subjects
        assert set(np.unique(nib.load(cases[0]["label"]).dataobj)) == {0, value}
    assert len(seen) + 40 == sum(report["cases"].values())


@pytest.mark.slow
def test_btcv__published_counts_and_slices(btcv: Path) -> None:
    # The shared copy holds the 18 training scans with 1,385 slices, and test scans.
    cases = [c for s in ("training", "validation") for c in load_datalist(btcv, s, organs=ORGANS)]
    assert len(cases) == 18
    assert sum(nib.load(case["image"]).shape[2] for case in cases) == 1385
    assert load_datalist(btcv, "test", organs=ORGANS)


@pytest.mark.slow
def test_btcv__is_in_hounsfield_units_and_sites_pool(btcv: Path) -> None:
    pooled = load_pooled_datalist(btcv / "sites", "training", organs=ORGANS)
    assert len(pooled) == 14
    for case in pooled[:2]:
        image = np.asarray(nib.load(case["image"]).dataobj)
        assert image.dtype == np.int16
        assert (image.min(), image.max()) == (-125, 275)
        label = np.asarray(nib.load(case["label"]).dataobj)
        (value,) = set(np.unique(label)) - {0}
        assert case["annotated"][value]
        # Contrast-enhanced abdominal organs.
        assert 30 < image[label == value].mean() < 220


@pytest.mark.slow
def test_btcv__check_repeats_cleanly(btcv: Path) -> None:
    errors, _ = verify_dataset(btcv)
    assert errors == []


@pytest.mark.slow
def test_btcv__raw_manifest_refuses_the_8_bit_copy(source: Path, tmp_path: Path) -> None:
    plan = make_plan("btcv", source=source / "btcv")
    case = plan.cases[0]
    pair = check_pair(
        case.raw.image, case.raw.label, expected_values(case.manifest), root=case.root
    )
    assert [finding.kind for finding in pair.findings] == ["stored-range"]
