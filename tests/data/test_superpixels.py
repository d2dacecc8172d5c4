"""Superpixels and episodes: what they are made of, their files, and their randomness."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg_kit.data.episodes import EpisodeLoader, SuperpixelSlices
from medseg_kit.data.superpixels import Superpixels, body_mask
from medseg_kit.transforms.episodes import EpisodeAugmentation
from medseg_kit.typing import UserError

SIZE = 32
SETTINGS = Superpixels(min_size=12)


def scan(*, ct: bool = False, seed: int = 0) -> np.ndarray:
    """Return a volume (SIZE, SIZE, 6): a body with two organs, air in the first and last slice."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    volume = np.zeros((SIZE, SIZE, 6), np.float32)
    for z in range(1, 5):
        volume[(x - 16) ** 2 + (y - 16) ** 2 < 150, z] = 100
        volume[(x - 12) ** 2 + (y - 16) ** 2 < 16, z] = 200
        volume[(x - 21) ** 2 + (y - 16) ** 2 < 16, z] = 150
    volume += np.where(volume > 0, rng.normal(0, 1, volume.shape), 0).astype(np.float32)
    return np.where(volume > 0, volume, -1000).astype(np.float32) if ct else volume


@pytest.fixture
def cases(tmp_path):
    result = []
    for seed in range(3):
        path = tmp_path / "images" / f"p{seed}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(scan(seed=seed), np.diag([2.0, 2, 5, 1])), path)
        result.append({"image": str(path), "subject": f"p{seed}"})
    return result


def dataset(cases, folder, **options):
    settings = {"image_size": SIZE, "superpixels": SETTINGS, "folder": folder, **options}
    return SuperpixelSlices(cases, **settings)


@pytest.mark.parametrize("ct", [False, True])
def test_superpixels__count_from_1_inside_the_body(ct):
    volume = np.moveaxis(scan(ct=ct), 2, 0)
    pieces = SETTINGS.of(volume)
    body = volume > 0
    np.testing.assert_array_equal(pieces > 0, body)
    for index in range(1, 5):
        values = np.unique(pieces[index][body[index]])
        assert values.tolist() == list(range(1, len(values) + 1))
        assert len(values) >= 3
        organ = pieces[index][10:15, 14:19]
        assert len(np.unique(organ)) == 1  # the bright disc is one piece


def test_body_mask__is_the_largest_part_of_each_slice_without_holes():
    volume = np.zeros((3, 20, 20))
    volume[:, 2:12, 2:12] = 5
    volume[:, 5:7, 5:7] = 0  # a hole
    volume[:, 16:18, 16:18] = 5  # a speck
    volume[2, 2:16, 2:16] = 0  # alone in the last slice
    mask = body_mask(volume, 1.0)
    assert mask.sum((1, 2)).tolist() == [100, 100, 4]
    np.testing.assert_array_equal(body_mask(volume, "otsu"), mask)
    assert not body_mask(np.zeros((2, 4, 4)), "otsu").any()


@pytest.mark.slow
def test_files__are_made_once_and_anew_for_another_image(cases, tmp_path):
    files = dataset(cases, tmp_path / "s").files
    assert files.make(cases) == 3
    assert files.make(cases) == 0
    kept = files.read(cases[0])
    image = nib.load(cases[0]["image"])
    nib.save(nib.Nifti1Image(scan(seed=9), image.affine), cases[0]["image"])
    assert [case["subject"] for case in files.missing(cases)] == ["p0"]
    assert files.make(cases, jobs=2) == 1
    assert not torch.equal(files.read(cases[0]), kept)
    other = dataset(cases, tmp_path / "s", superpixels=Superpixels(min_size=30)).files
    assert other.folder != files.folder


def test_files__of_two_sites_whose_patients_share_a_name(cases, tmp_path):
    alike = [{**case, "subject": "p1"} for case in cases[:2]]
    slices = dataset(alike, tmp_path / "s")
    first, second = slices.pieces.chunk(2)
    assert not torch.equal(first, second)
    assert slices.files.missing(alike) == []


def test_files__nothing_above_the_threshold(cases, tmp_path):
    bad = dataset(cases, tmp_path / "s", superpixels=Superpixels(mr_body=1e6))
    with pytest.raises(UserError, match=r"p0\.nii\.gz: nothing lies above the threshold"):
        len(bad)
    with pytest.raises(ValueError, match="a number or 'otsu'"):
        Superpixels(mr_body="half")


@pytest.mark.parametrize("draw_last", [False, True])
def test_draw__takes_every_superpixel_but_the_last_of_slices_with_body(cases, tmp_path, draw_last):
    slices = dataset(cases[:1], tmp_path / "s")
    assert len(slices) == 4  # two of six slices are air
    generator = torch.Generator().manual_seed(0)
    index = torch.zeros(200, dtype=torch.long)
    image, mask = slices.draw(index, generator, last=draw_last)
    assert image.shape == mask.shape == (200, 1, SIZE, SIZE)
    pieces = slices[0]["superpixels"]
    numbers = range(1, int(pieces.max()) + int(draw_last))
    areas = {int((pieces == value).sum()) for value in numbers}
    assert {int(area) for area in mask.flatten(1).sum(1)} == areas


def test_loader__uses_each_slice_once_and_is_seeded(cases, tmp_path):
    slices = dataset(cases, tmp_path / "s")
    loader = EpisodeLoader(slices, batch_size=5, augmentation=EpisodeAugmentation())
    assert (len(loader), loader.num_samples) == (3, 12)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(list(loader))
    assert [len(batch["image"]) for batch in runs[0]] == [10, 10, 4]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])
    capped = EpisodeLoader(slices, batch_size=1, max_steps=7)
    assert (len(capped), capped.num_samples, len(list(capped))) == (7, 7, 7)


def test_loader__draws_anew_where_the_superpixel_left_the_support(cases, tmp_path, caplog):
    class Moving:
        """Empties the first masks that it sees."""

        def __init__(self, number):
            self.left = number

        def __call__(self, image, mask, *, generator):
            self.left -= 1
            return image, mask if self.left < 0 else torch.zeros_like(mask)

    slices = dataset(cases[:1], tmp_path / "s")
    (first, *_) = EpisodeLoader(slices, augmentation=Moving(3))
    assert first["label"].flatten(1).any(1).all()
    assert not caplog.records
    (first, *_) = EpisodeLoader(slices, augmentation=Moving(20))
    assert not first["label"].any()
    assert "left the support 10 times" in caplog.text


def test_loader__refuses_sizes_that_cannot_be(cases, tmp_path):
    with pytest.raises(ValueError, match="must be at least 1"):
        EpisodeLoader(dataset(cases, tmp_path / "s"), batch_size=0)
    with pytest.raises(UserError, match="list of volumes is empty"):
        dataset([], tmp_path / "s")


def test_augmentation__none_of_it_changes_nothing():
    still = EpisodeAugmentation(
        rotation_deg=0, shift_px=0, shear_deg=0, size=(1, 1), elastic=0, gamma=(1, 1)
    )
    image, mask = torch.rand(2, 1, 16, 16), (torch.rand(2, 1, 16, 16) > 0.5).to(torch.uint8)
    moved, inside = still(image, mask, generator=torch.Generator())
    torch.testing.assert_close(moved, image, atol=1e-4, rtol=1e-4)
    assert torch.equal(inside, mask)


def test_augmentation__moves_image_and_mask_alike():
    mask = torch.zeros(4, 1, 64, 64, dtype=torch.uint8)
    mask[:, :, 20:44, 24:40] = 1
    distort = EpisodeAugmentation(gamma=(1, 1))
    moved, inside = distort(mask.float(), mask, generator=torch.Generator().manual_seed(0))
    assert torch.equal((moved > 0.5).to(torch.uint8), inside)
    assert not torch.equal(inside, mask)
    area = inside.flatten(1).sum(1) / (24 * 16)
    assert ((area > 0.7) & (area < 1.6)).all()  # size 0.9 to 1.2
    assert len({int(value) for value in inside.flatten(1).sum(1)}) > 1  # each in its own way
