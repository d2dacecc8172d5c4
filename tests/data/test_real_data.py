"""The real public sets below ``MEDSEG_DATA``: counts, units and sites as published."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg_kit.data.budgets import labelled_flags
from medseg_kit.data.checks import check_pair
from medseg_kit.data.datalist import SECTIONS, load_datalist, read_datalist
from medseg_kit.data.plan import make_plan
from medseg_kit.data.pooling import load_pooled_datalist
from medseg_kit.data.prepare import expected_values, prepare_dataset
from medseg_kit.data.slices import SliceDataset
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


def _slices(cases: list[dict[str, Any]]) -> int:
    return sum(min(nib.load(case["image"]).shape) for case in cases)


@pytest.mark.slow
def test_acdc__published_counts_slices_and_budgets(source: Path, tmp_path: Path) -> None:
    organs = ["right ventricle", "myocardium", "left ventricle"]
    report = prepare_dataset(
        make_plan("acdc", source=source, sites="three_centres"), tmp_path / "o"
    )
    # The shared copy has all training and validation patients, and no spacing.
    assert (report["cases"]["training"], report["cases"]["validation"]) == (140, 20)
    assert read_datalist(tmp_path / "o")["spacing"] == "lost"
    cases = load_datalist(tmp_path / "o", "training", organs=organs)
    assert _slices(cases) == 1312
    slices = {
        number: _slices([c for c, f in zip(cases, labelled_flags(cases, number), strict=True) if f])
        for number in (1, 3, 7, 14, 21, 28, 35)
    }
    # SSL4MIS counts 136 and 256 slices for 7 and 14: its cuts do not end at a patient there
    assert slices == {1: 32, 3: 68, 7: 134, 14: 272, 21: 396, 28: 512, 35: 664}
    # the 23 slices of MCSC's code
    first = {"patient099_ED": None, "patient099_ES": [0, 1, 2, 4, 8, 9, 10]}
    data = SliceDataset(cases[:2], image_size=16, num_classes=4, labelled=first)
    assert int(data.labelled.sum()) == 23


@pytest.mark.slow
def test_synapse8__organs_where_they_belong(source: Path, tmp_path: Path) -> None:
    prepare_dataset(make_plan("btcv_8bit", source=source, view="synapse8"), tmp_path / "out")
    names = read_datalist(tmp_path / "out")["labels"].values()
    organs = [name for name in names if name != "background"]
    cases = load_datalist(tmp_path / "out", "training", organs=organs)
    assert [case["subject"] for case in cases[:4]] == ["0031", "0007", "0009", "0005"]
    assert _slices(cases) == 1385
    data = SliceDataset(
        cases[:2], image_size=64, num_classes=9, window=[-125, 275], orientation="RAS", labelled=1
    )
    # in slices of a RAS volume the rows run from the patient's left to the right
    rows = {
        organ: (data.store.labels[data.labelled] == value).nonzero()[:, 1].float().mean()
        for value, organ in enumerate(organs, start=1)
    }
    assert rows["right kidney"] > rows["left kidney"]
    assert rows["liver"] > rows["spleen"]
