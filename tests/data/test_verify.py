"""The check of a prepared folder: silent when all is well, else every change is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg_kit.data.datalist import read_datalist, write_datalist
from medseg_kit.data.phantoms import write_phantom_sites
from medseg_kit.data.plan import make_plan
from medseg_kit.data.prepare import prepare_dataset
from medseg_kit.data.verify import verify_dataset
from medseg_kit.data.volumes import file_sha256
from medseg_kit.typing import UserError
from tests.data.conftest import write_nifti


@pytest.fixture
def prepared(raw_set: Path, manifest_file: Callable[..., Path], tmp_path: Path) -> Path:
    plan = make_plan(manifest_file(), source=raw_set, sites="pair")
    prepare_dataset(plan, tmp_path / "out")
    return tmp_path / "out"


def rewrite(path: Path, array: np.ndarray) -> None:
    """Replace a file, its sum in the datalist too, as an edit by hand would."""
    path.unlink()  # a site's image is a hard link of the whole set's
    write_nifti(path, array)
    folder = path.parents[1]
    content = read_datalist(folder)
    content["sha256"][f"{path.parent.name}/{path.name}"] = file_sha256(path)
    write_datalist(folder, content)


def edit(folder: Path, **changes: Any) -> None:
    write_datalist(folder, {**read_datalist(folder), **changes})


def test_verify__good_data_has_no_findings(prepared: Path) -> None:
    assert verify_dataset(prepared) == ([], [])
    assert verify_dataset(prepared / "sites") == ([], [])
    assert verify_dataset(prepared / "sites" / "site-liver") == ([], [])


def change_byte(out: Path) -> None:
    with (out / "labels/case_4.nii.gz").open("r+b") as file:
        file.seek(5)
        file.write(b"\x01")


def foreign_label(out: Path) -> None:
    path = out / "sites/site-liver/labels/case_0.nii.gz"
    array = np.asarray(nib.load(path).dataobj).copy()
    array[0, 0, 0] = 2
    rewrite(path, array)


def same_image_at_two_sites(out: Path) -> None:
    source = out / "sites/site-liver/images/case_0.nii.gz"
    array = np.asarray(nib.load(source).dataobj)
    rewrite(out / "sites/site-parts/images/case_2.nii.gz", array)


def subject_at_two_sites(out: Path) -> None:
    folder = out / "sites" / "site-parts"
    cases = read_datalist(folder)["training"]
    edit(folder, training=[{**cases[0], "subject": "case_0"}])


def train_on_test_subject(out: Path) -> None:
    folder = out / "sites" / "site-parts"
    cases = read_datalist(folder)["training"]
    edit(folder, training=[{**cases[0], "subject": "case_5"}])


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "changed byte": (change_byte, r"\[sha256\] labels/case_4.nii.gz: .*the file changed"),
    "file removed": (
        lambda out: (out / "images/case_5.nii.gz").unlink(),
        r"\[missing-file\] images/case_5.nii.gz: the file does not exist",
    ),
    "label of an organ that the site does not annotate": (
        foreign_label,
        r"\[label-values\] sites/site-liver/labels/case_0\S*: unexpected value\(s\) 2 \(1 voxels",
    ),
    "datalist broken": (
        lambda out: (out / "sites/site-liver/datalist.json").write_text("{"),
        r"\[datalist\] sites/site-liver/datalist.json: .*no valid JSON",
    ),
    "no sum": (
        lambda out: edit(out, sha256={}),
        r"\[sha256\] images/case_0.nii.gz: datalist.json has no sum",
    ),
    "duplicate across sites": (
        same_image_at_two_sites,
        r"\[duplicate-image\] sites/site-parts/images/case_2.nii.gz: same voxel values as",
    ),
    "subject at two sites": (
        subject_at_two_sites,
        r"\[site-overlap\] .*case_0 stands at site-parts and at site-liver",
    ),
    "test subject trained on": (
        train_on_test_subject,
        r"\[site-overlap\] .*case_5 stands in training here and in test of",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_verify__change_is_named(prepared: Path, change: str) -> None:
    spoil, message = CHANGES[change]
    spoil(prepared)
    errors, _ = verify_dataset(prepared)
    text = "\n".join(map(str, errors))
    assert errors
    assert re.search(message, text), text


def test_verify__extra_file_is_a_warning(prepared: Path) -> None:
    shutil.copy(prepared / "images/case_4.nii.gz", prepared / "images/more.nii.gz")
    errors, (warning,) = verify_dataset(prepared)
    assert errors == []
    assert (warning.kind, warning.file) == ("extra-file", "images/more.nii.gz")


def test_verify__what_preparation_allowed_stays_allowed(
    raw_set: Path, manifest_file: Callable[..., Path], tmp_path: Path
) -> None:
    image = raw_set / "imagesTr" / "case_1.nii.gz"
    shutil.copy(raw_set / "imagesTr" / "case_0.nii.gz", image)
    plan = make_plan(manifest_file(), source=raw_set)
    prepare_dataset(plan, tmp_path / "out", allow=["duplicate-image"])
    errors, warnings = verify_dataset(tmp_path / "out")
    assert errors == []
    assert [finding.kind for finding in warnings] == ["duplicate-image"]


def test_verify__nothing_prepared_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no datalist\.json"):
        verify_dataset(tmp_path)


def test_verify__damaged_report(prepared: Path) -> None:
    (prepared / "report.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="is damaged"):
        verify_dataset(prepared)


def test_verify__phantom_sites_pass(tmp_path: Path) -> None:
    write_phantom_sites(
        tmp_path, organs=["liver", "kidneys"], patients_per_site=2, num_outside=1, size=(16, 16, 16)
    )
    assert verify_dataset(tmp_path)[0] == []
