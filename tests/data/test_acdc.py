"""ACDC: frames by name, lost spacing, label budgets of sites, the published lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg_kit.data.budgets import labelled_flags
from medseg_kit.data.datalist import load_datalist, read_datalist
from medseg_kit.data.findings import DataProblemsError
from medseg_kit.data.manifest import load_dataset_manifest
from medseg_kit.data.plan import make_plan
from medseg_kit.data.prepare import prepare_dataset
from medseg_kit.data.readers import read_cases
from medseg_kit.data.verify import verify_dataset
from medseg_kit.typing import UserError
from tests.data.conftest import write_nifti

ORGANS = ["right ventricle", "myocardium", "left ventricle"]
LOST = np.eye(4)
SOME = ["099", "058", "020", "021", "046", "028", "019", "045", "011"]


def write_frames(folder: Path, patient: str, affine: np.ndarray, numbers: tuple[int, ...]) -> None:
    rng = np.random.default_rng(int(patient))
    for number in numbers:
        stem = folder / f"patient{patient}" / f"patient{patient}_frame{number:02d}"
        shape = (9, 8, 3)
        write_nifti(Path(f"{stem}.nii.gz"), rng.integers(0, 900, shape).astype(np.int16), affine)
        label = rng.integers(0, 4, shape).astype(np.uint8)
        write_nifti(Path(f"{stem}_gt.nii.gz"), label, affine)


@pytest.fixture
def raw_acdc(tmp_path: Path) -> Callable[..., Path]:
    def write(affine: np.ndarray = LOST, *, patients: list[str] = SOME) -> Path:
        for patient in patients:
            write_frames(tmp_path / "raw" / "acdc", patient, affine, (1, 2))
        return tmp_path / "raw"

    return write


def test_read_acdc__info_names_the_frames(tmp_path: Path) -> None:
    write_frames(tmp_path, "001", LOST, (1, 12))
    write_frames(tmp_path, "002", LOST, (3, 10, 11))
    (tmp_path / "patient001" / "patient001_4d.nii.gz").touch()
    (tmp_path / "patient001" / "MANDATORY_CITATION.md").touch()
    (tmp_path / "patient002" / "Info.cfg").write_text("ED: 10\nES: 3\nGroup: DCM\nNbFrame: 30\n")
    cases = read_cases(tmp_path, "acdc")
    found = [(case.case_id, case.image.name, case.label.name) for case in cases]
    stems = ["patient001_frame01", "patient001_frame12", "patient002_frame10", "patient002_frame03"]
    names = ["patient001_ED", "patient001_ES", "patient002_ED", "patient002_ES"]
    expected = [(n, f"{s}.nii.gz", f"{s}_gt.nii.gz") for n, s in zip(names, stems, strict=True)]
    assert found == expected


def test_read_acdc__a_missing_frame_is_named_by_the_checks(
    raw_acdc: Callable[..., Path], tmp_path: Path
) -> None:
    source = raw_acdc(patients=["099"])
    (source / "acdc" / "patient099" / "Info.cfg").write_text("ED: 1\nES: 9\n")
    with pytest.raises(
        DataProblemsError, match=r"\[missing-file\] patient099/patient099_frame09_gt"
    ):
        prepare_dataset(make_plan("acdc", source=source), tmp_path / "out")


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (None, "holds the frames .*'01', '02', '07'.* no Info.cfg"),
        ("ED: 1\n", "Info.cfg has no whole numbers ED and ES"),
        ("ED: one\nES: 2\n", "Info.cfg has no whole numbers"),
        ("ED: 2\nES: 2\n", "gives frame 2 for both"),
    ],
)
def test_read_acdc__unclear_frames(tmp_path: Path, info: str | None, message: str) -> None:
    write_frames(tmp_path, "001", LOST, (1, 2, 7))
    if info is not None:
        (tmp_path / "patient001" / "Info.cfg").write_text(info)
    with pytest.raises(UserError, match=message):
        read_cases(tmp_path, "acdc")


@pytest.mark.parametrize(
    ("affine", "spacing", "known"),
    [(LOST, "lost", False), (np.diag([1.4, 1.4, 10, 1]), "valid", True)],
)
def test_acdc__a_lost_spacing_is_noticed(
    raw_acdc: Callable[..., Path], tmp_path: Path, affine: np.ndarray, spacing: str, known: bool
) -> None:
    report = prepare_dataset(make_plan("acdc", source=raw_acdc(affine)), tmp_path / "out")
    assert read_datalist(tmp_path / "out")["spacing"] == spacing
    assert all((record["ml"] is not None) is known for record in report["records"])
    kinds = {warning["kind"] for warning in report["warnings"]}
    assert ("lost-spacing" in kinds) is not known


def test_acdc__training_order_and_frames(raw_acdc: Callable[..., Path], tmp_path: Path) -> None:
    prepare_dataset(make_plan("acdc", source=raw_acdc()), tmp_path / "out")
    cases = load_datalist(tmp_path / "out", "training", organs=ORGANS)
    names = [(case["subject"], case["frame"]) for case in cases]
    order = ["099", "058", "021", "020", "046"]
    assert names == [(f"patient{p}", frame) for p in order for frame in ("ED", "ES")]


def test_acdc__sites_have_the_labels_of_their_budget(
    raw_acdc: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = prepare_dataset(make_plan("acdc", source=raw_acdc(), sites="three_centres"), out)

    def labelled(folder: Path, section: str = "training") -> list[str]:
        cases = load_datalist(folder, section, organs=ORGANS)
        for case, flag in zip(cases, labelled_flags(cases), strict=True):
            assert ("label" in case) is flag
        return sorted(
            {c["subject"][-3:] for c, f in zip(cases, labelled_flags(cases), strict=True) if f}
        )

    sites = out / "sites"
    assert labelled(sites / "centre-many") == ["058", "099"]
    assert labelled(sites / "centre-few") == ["021"]
    assert labelled(sites / "centre-none") == []
    assert labelled(sites / "centre-none", "validation") == ["045"]
    # the whole set keeps all labels, to evaluate pseudo-labels with
    assert labelled(out) == ["020", "021", "046", "058", "099"]
    assert not (sites / "centre-many" / "labels" / "patient020_ED.nii.gz").exists()
    assert report["sites"]["centre-many"]["labelled"] == ["patient099", "patient058"]
    errors, _ = verify_dataset(out)
    assert errors == []


def budgets(name: str, split: str = "published") -> list[dict[str, Any]]:
    training = load_dataset_manifest(name).splits[split].sections["training"]
    return [
        {"image": f"{subject}.nii.gz", "label": "l", "subject": subject} for subject in training
    ]


def test_acdc__published_lists() -> None:
    manifest = load_dataset_manifest("acdc")
    sections = manifest.splits["published"].sections
    assert {name: len(subjects) for name, subjects in sections.items()} == {
        "training": 70,
        "validation": 10,
        "test": 20,
    }
    everybody = [subject for subjects in sections.values() for subject in subjects]
    assert sorted(everybody) == [f"patient{number:03d}" for number in range(1, 101)]
    cases = budgets("acdc")
    seven = ["099", "038", "050", "100", "058", "021", "049"]
    for number in (1, 3, 7):
        flags = labelled_flags(cases, number)
        named = [c["subject"][-3:] for c, flag in zip(cases, flags, strict=True) if flag]
        assert named == seven[:number]


@pytest.mark.parametrize(("name", "labelled"), [("acdc", 7), ("btcv", 4), ("btcv_8bit", 4)])
def test_three_centres__divide_the_labelled_subjects_of_a_budget(name: str, labelled: int) -> None:
    manifest = load_dataset_manifest(name)
    setting, split = manifest.sites["three_centres"], manifest.splits["published"].sections
    numbers = [rule.labelled or 0 for rule in setting.members.values()]
    assert (sum(numbers), min(numbers)) == (labelled, 0)
    named = [
        subject
        for rule in setting.members.values()
        if rule.sections
        for subject in rule.sections["training"][: rule.labelled]
    ]
    assert sorted(named) == sorted(split["training"][:labelled])
    used = {
        section: [s for rule in setting.members.values() for s in (rule.sections or {})[section]]
        for section in ("training", "validation")
    }
    available = [*split["training"], *split["validation"]]
    assert sorted([*used["training"], *used["validation"]]) == sorted(available)
    # the labels of a site's annotated organs are those of the view
    assert all(
        rule.organs == manifest.views[setting.view].organs for rule in setting.members.values()
    )
