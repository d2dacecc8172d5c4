"""One-shot manifests: FedCoWPro's counts, support scans, and the raw folders of CHAOS."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from medseg_kit.data.manifest import load_dataset_manifest
from medseg_kit.data.plan import Plan, make_plan
from medseg_kit.data.readers import read_cases
from medseg_kit.data.splits import support_subjects
from medseg_kit.data.stacks import organ_values, read_stack
from medseg_kit.typing import UserError

CHAOS = (1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39)
BTCV = (*range(1, 11), *range(21, 41))
# trained on, support, held out (4:1 by scans)
SIX_CLIENTS = {
    "btcv": (23, 1, 6),
    "flare22-1": (23, 1, 6),
    "flare22-2": (15, 1, 4),
    "chaos-t2": (15, 1, 4),
    "chaos-t1-in": (15, 1, 4),
    "chaos-t1-out": (15, 1, 4),
}
FIVE_CLIENTS = {
    "client-1": (15, 1, 4),
    "client-2": (15, 1, 4),
    "client-3": (11, 1, 3),
    "client-4": (11, 1, 3),
    "client-5": (19, 1, 5),
}


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty files in the public layouts; a plan opens none of them."""
    root = tmp_path_factory.mktemp("raw")
    for number in BTCV:
        touch(
            root / f"RawData/Training/img/img{number:04d}.nii.gz",
            root / f"RawData/Training/label/label{number:04d}.nii.gz",
        )
    for number in range(1, 51):
        name = f"FLARE22_Tr_{number:04d}"
        touch(root / f"flare22/images/{name}_0000.nii.gz", root / f"flare22/labels/{name}.nii.gz")
    for number in CHAOS:
        patient = root / "Train_Sets/MR" / str(number)
        touch(patient / "T2SPIR/DICOM_anon/a.dcm", patient / "T2SPIR/Ground/a.png")
        touch(patient / "T1DUAL/Ground/a.png")
        for phase in ("InPhase", "OutPhase"):
            touch(patient / "T1DUAL/DICOM_anon" / phase / "a.dcm")
    for number in range(1, 96):
        touch(*(root / f"mogamb/{kind}/{number:03d}.nii.gz" for kind in ("images", "labels")))
    return root


def counts(plan: Plan) -> dict[str, tuple[int, int, int]]:
    """Return for each site the scans that are trained on, the support scans, the held-out ones."""
    result = {}
    for site in plan.sites:
        own = [case for case in plan.cases if case.site == site]
        result[site] = (
            sum(case.section == "training" and not case.support for case in own),
            sum(case.support for case in own),
            sum(case.section == "validation" for case in own),
        )
    return result


@pytest.mark.parametrize(
    ("name", "sites", "expected"),
    [("fedcowpro", "six_clients", SIX_CLIENTS), ("mogamb", "five_clients", FIVE_CLIENTS)],
)
def test_plan__counts_of_the_paper(raw: Path, name: str, sites: str, expected: dict) -> None:
    plan = make_plan(name, source=raw, sites=sites)
    assert counts(plan) == expected
    assert all(case.section == "training" for case in plan.cases if case.support)
    places = [(case.site, case.raw.subject) for case in plan.cases]
    assert len(set(places)) == len(places)


def test_mogamb__clients_are_blocks_of_20_20_15_15_25(raw: Path) -> None:
    plan = make_plan("mogamb", source=raw, sites="five_clients")
    blocks = [sorted(c.raw.subject for c in plan.cases if c.site == site) for site in plan.sites]
    assert [len(block) for block in blocks] == [20, 20, 15, 15, 25]
    assert [subject for block in blocks for subject in block] == [f"{i:03d}" for i in range(1, 96)]


def test_chaos__phases_share_patients_and_labels(raw: Path) -> None:
    plan = make_plan("fedcowpro", source=raw, sites="mr_clients")
    labels = {}
    for case in plan.cases:
        patient = case.raw.subject.split("_")[1]
        labels.setdefault(patient, {})[case.site] = case.raw.label
    assert len(labels) == 20
    for found in labels.values():
        assert found["chaos-t1-in"] == found["chaos-t1-out"] != found["chaos-t2"]


@pytest.mark.parametrize("name", ["btcv_8bit", "chaos_mr_t2"])
def test_one_shot_development__follows_its_rule_and_hides_the_test(name: str) -> None:
    sections = load_dataset_manifest(name).splits["one_shot_development"].sections
    chosen_from = [*sections["validation"], *sections["training"]]
    order = sorted(chosen_from, key=lambda i: hashlib.sha256(f"1234:{i}".encode()).hexdigest())
    assert chosen_from == order
    assert len(sections["validation"]) == len(order) // 5
    assert not set(sections["test"]) & set(chosen_from)


def test_read_cases__flare_and_chaos(raw: Path) -> None:
    first = read_cases(raw / "flare22", "flare")[0]
    assert (first.subject, first.image.name) == ("FLARE22_Tr_0001", "FLARE22_Tr_0001_0000.nii.gz")
    cases = read_cases(raw / "Train_Sets/MR", "chaos_t1_out")
    assert [case.subject for case in cases[:3]] == [
        "chaos_01_t1out",
        "chaos_02_t1out",
        "chaos_03_t1out",
    ]
    assert cases[0].image.name == "OutPhase"


def write_series(folder: Path, volume: np.ndarray, names: list[str]) -> None:
    """Write slices ``(D, rows, columns)`` as a DICOM series of 2 x 2 x 5 mm."""
    folder.mkdir(parents=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, name in enumerate(names):
        image = SimpleITK.GetImageFromArray(volume[index].astype(np.int16))
        image.SetSpacing([2.0, 2.0])
        for key, value in {
            "0008|0060": "MR",
            "0008|0018": f"1.2.3.4.{index + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0020|0013": str(index + 1),
            "0020|0032": f"0\\0\\{5 * index}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "5",
        }.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / name))
        writer.Execute(image)


def test_read_stack__labels_follow_their_series_by_file_name(tmp_path: Path) -> None:
    greys = np.zeros((3, 6, 8), np.uint8)
    greys[0, 1, 2], greys[1, 3, 4], greys[2, 5, 7] = 63, 126, 252
    # the file names run against the position along the body
    names = ["c.dcm", "b.dcm", "a.dcm"]
    write_series(tmp_path / "DICOM_anon", greys, names)
    (tmp_path / "Ground").mkdir()
    for name, picture in zip(names, greys, strict=True):
        image = SimpleITK.GetImageFromArray(picture)
        SimpleITK.WriteImage(image, str(tmp_path / "Ground" / name.replace("dcm", "png")))
    image, affine = read_stack(tmp_path / "DICOM_anon")
    label, label_affine = read_stack(tmp_path / "Ground")
    assert image.shape == label.shape == (8, 6, 3)
    np.testing.assert_array_equal(label, organ_values(image))
    np.testing.assert_allclose(affine, label_affine)
    np.testing.assert_allclose(np.abs(np.diag(affine)), [2, 2, 5, 1])


def test_read_stack__that_does_not_fit_its_series(tmp_path: Path) -> None:
    write_series(tmp_path / "DICOM_anon", np.zeros((2, 4, 4)), ["a.dcm", "b.dcm"])
    (tmp_path / "Ground").mkdir()
    blank = SimpleITK.GetImageFromArray(np.zeros((4, 4), np.uint8))
    SimpleITK.WriteImage(blank, str(tmp_path / "Ground" / "a.png"))
    with pytest.raises(ValueError, match="1 PNG files for a series of 2 slices"):
        read_stack(tmp_path / "Ground")


def test_support_subjects__a_client_with_one_scan_is_an_error() -> None:
    split = load_dataset_manifest("chaos_mr_t2").splits["one_shot"]
    with pytest.raises(UserError, match=r"has 1 training scan\(s\) and sets aside 1 as support"):
        support_subjects({"training": ["chaos_34"], "validation": [], "test": []}, split, {}, None)
