from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from medseg_kit.inference.cases import find_cases
from medseg_kit.inference.reading import digest_of, read_volume
from medseg_kit.inference.writing import write_labels, write_probabilities
from medseg_kit.typing import UserError


def _read(folder):
    (case,) = find_cases(folder)
    return read_volume(case, digest_of(case.files))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_read_volume__nifti_keeps_voxels_and_affine(kit, tmp_path, geometry, suffix):
    array = kit.smooth((7, 6, 5))
    path = kit.write_nifti(tmp_path / f"a{suffix}", array, geometry)

    volume = _read(tmp_path)

    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_read_volume__itk_formats_in_nifti_coordinates(kit, tmp_path, suffix):
    array = kit.smooth((7, 6, 5))
    image = SimpleITK.GetImageFromArray(array.T.copy())
    image.SetSpacing((0.5, 0.6, 2.0))
    image.SetOrigin((3, 4, 5))
    SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"))
    SimpleITK.WriteImage(image, str(tmp_path / "same.nii"))
    expected = nib.load(tmp_path / "same.nii").affine
    (tmp_path / "same.nii").unlink()

    volume = _read(tmp_path)

    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, expected, atol=1e-6)


def test_read_volume__dicom_series_in_hounsfield_units(kit, tmp_path):
    array = kit.smooth((7, 6, 5))  # the writer stores value - intercept
    kit.write_series(tmp_path / "patient", array)

    volume = _read(tmp_path)

    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(np.abs(np.diag(volume.affine)[:3]), [1.2, 0.8, 3.0], atol=1e-6)
    np.testing.assert_allclose(volume.affine[:3, 3], [10, -5, 0], atol=1e-6)


def test_read_volume__dicom_series_with_a_missing_slice(kit, tmp_path):
    kit.write_series(tmp_path / "p", kit.smooth((7, 6, 4)), positions=[0, 3, 9, 12])
    with pytest.raises(UserError, match=r"varies from 3\.00 to 6\.00 mm"):
        _read(tmp_path)


def test_read_volume__dicom_series_of_a_tilted_gantry(kit, tmp_path):
    kit.write_series(tmp_path / "p", kit.smooth((7, 6, 4)), tilt=1.0)
    with pytest.raises(UserError, match="tilted by 18 degrees"):
        _read(tmp_path)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_digest__of_the_voxels_beside_a_header(kit, tmp_path, suffix):
    digests = []
    for seed in (0, 1):
        image = SimpleITK.GetImageFromArray(kit.smooth((7, 6, 5), seed).T.copy())
        SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"))
        (case,) = find_cases(tmp_path)
        digests.append(digest_of(case.files))
    assert digests[0] != digests[1]
    assert len(case.files) == 2


def test_read_volume__several_gzip_members(kit, tmp_path):
    path = kit.write_nifti(tmp_path / "a.nii.gz", kit.smooth((7, 6, 5)))
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw[:400]) + gzip.compress(raw[400:]))
    np.testing.assert_array_equal(_read(tmp_path).array, kit.smooth((7, 6, 5)))


BAD = {
    "2-D": np.ones((5, 6), np.int16),
    "4-D .*save each time frame": np.arange(4 * 4 * 4 * 2, dtype=np.int16).reshape(4, 4, 4, 2),
    "NaN": np.where(np.arange(64).reshape(4, 4, 4) == 3, np.nan, 1).astype(np.float32),
    "image is empty": np.zeros((4, 4, 4), np.int16),
}


@pytest.mark.parametrize("reason", BAD)
def test_read_volume__degenerate_images(kit, tmp_path, reason):
    kit.write_nifti(tmp_path / "a.nii.gz", BAD[reason])
    with pytest.raises(UserError, match=reason):
        _read(tmp_path)


@pytest.mark.parametrize("share", [0, 0.1, 0.9])
def test_read_volume__cut_off_files(kit, tmp_path, share):
    path = kit.write_nifti(tmp_path / "a.nii.gz", kit.smooth((7, 6, 5)))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises((OSError, UserError)):
        _read(tmp_path)


def test_read_volume__no_nifti_inside(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"nothing" * 200))
    with pytest.raises(UserError, match="no NIfTI image"):
        _read(tmp_path)


def test_write_labels__exactly_the_geometry_of_the_image(kit, tmp_path, geometry):
    path = kit.write_nifti(tmp_path / "a.nii.gz", kit.smooth((7, 6, 5)), geometry)
    image = nib.load(path)
    volume = _read(tmp_path)
    labels = (volume.array > 0).astype(np.uint8)

    write_labels(tmp_path / "sub" / "o.nii.gz", labels, volume)

    result = nib.load(tmp_path / "sub" / "o.nii.gz")
    np.testing.assert_array_equal(result.affine, image.affine)
    for key in ("qform_code", "sform_code", "pixdim"):
        np.testing.assert_array_equal(result.header[key], image.header[key])
    assert result.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(result.dataobj), labels)
    assert not list((tmp_path / "sub").glob(".*"))


def test_write__little_endian_whatever_the_image(tmp_path):
    array = np.arange(24, dtype=">f4").reshape(2, 3, 4)
    image = nib.Nifti1Image(array, np.eye(4), nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "a.nii.gz")
    volume = _read(tmp_path)
    classes = (np.full((2, 3, 4), share, np.float32) for share in (0.25, 0.75))
    write_probabilities(tmp_path / "p.nii.gz", classes, volume, count=2)
    write_labels(tmp_path / "l.nii.gz", np.ones((2, 3, 4), np.uint8), volume)
    assert np.unique(nib.load(tmp_path / "p.nii.gz").get_fdata()).tolist() == [0.25, 0.75]
    assert np.unique(nib.load(tmp_path / "l.nii.gz").get_fdata()).tolist() == [1]


def test_write_probabilities__four_axes(kit, tmp_path):
    kit.write_nifti(tmp_path / "a.nii.gz", kit.smooth((7, 6, 5)))
    volume = _read(tmp_path)
    classes = np.random.default_rng(0).random((2, 7, 6, 5)).astype(np.float32)

    write_probabilities(tmp_path / "p.nii.gz", iter(classes), volume, count=2)

    result = np.asarray(nib.load(tmp_path / "p.nii.gz").dataobj)
    np.testing.assert_array_equal(np.moveaxis(result, 3, 0), classes)
