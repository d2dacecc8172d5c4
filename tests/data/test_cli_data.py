"""`medseg data`: exit codes, and what is printed where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_kit.cli.data import check, phantoms, prepare
from medseg_kit.typing import UserError


def test_prepare_and_check__good_data(
    raw_set: Path,
    manifest_file: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "out")
    assert prepare(str(manifest_file()), source=str(raw_set), out=out, sites="pair") == 0
    text = capsys.readouterr().out
    assert "2 training, 2 validation, 2 test" in text
    assert "sites/site-parts (parts): 1 training, 1 validation" in text
    assert check(out) == 0
    assert "all checks passed" in capsys.readouterr().out


def test_prepare_and_check__bad_data_is_listed_on_stderr(
    raw_set: Path,
    manifest_file: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest, out = str(manifest_file()), str(tmp_path / "out")
    label = raw_set / "labelsTr" / "case_0.nii.gz"
    good = label.read_bytes()
    label.write_bytes(good[:-30])
    other = raw_set / "labelsTr" / "case_1.nii.gz"
    kept = other.read_bytes()
    image = nib.load(other)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), other)
    assert prepare(manifest, source=str(raw_set), out=out) == 1
    text, error = capsys.readouterr()
    assert "error: tiny was not prepared, 1 problem(s):" in error
    assert "[unreadable] labelsTr/case_0.nii.gz" in error
    assert "warning: [empty-label] labelsTr/case_1.nii.gz" in text
    label.write_bytes(good)
    other.write_bytes(kept)
    assert prepare(manifest, source=str(raw_set), out=out) == 0
    (tmp_path / "out" / "images" / "case_0.nii.gz").unlink()
    assert check(out) == 1
    assert "[missing-file] images/case_0.nii.gz" in capsys.readouterr().err


def test_prepare__allow_takes_a_list(
    raw_set: Path, manifest_file: Callable[..., Path], tmp_path: Path
) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (raw_set / folder / "case_5.nii.gz").unlink()
    arguments = {"source": str(raw_set), "out": str(tmp_path / "out")}
    assert prepare(str(manifest_file()), **arguments) == 1
    allow = "missing-subject, grid-affine"
    assert prepare(str(manifest_file()), allow=allow, **arguments) == 0


def test_phantoms__writes_and_prints_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "p")
    assert phantoms(out, organs="liver", patients_per_site=2, num_outside=1, size="16") == 0
    lines = capsys.readouterr().out.split()
    assert [Path(line).name for line in lines] == ["site-liver", "outside"]


@pytest.mark.parametrize("size", ["big", "8,8", "8,8,8,8"])
def test_phantoms__bad_size_is_named(tmp_path: Path, size: str) -> None:
    with pytest.raises(UserError, match=f"size '{size}'"):
        phantoms(str(tmp_path / "p"), size=size)


def test_phantoms__unknown_anatomy_offers_the_closest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean abdomen"):
        phantoms(str(tmp_path / "p"), anatomy="abdomn")
