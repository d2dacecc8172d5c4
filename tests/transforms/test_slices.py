"""Augmentation of slices: exact matrices, sides kept apart, the odds of the papers' rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg_kit.transforms.intensity import vary_intensity
from medseg_kit.transforms.slices import SliceAugmentation, sampling_grid
from medseg_kit.typing import UserError

RULES = ["rot_flip", "rot_flip_always", "rotate", "affine", "none"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(image: torch.Tensor, label: torch.Tensor | None = None) -> dict[str, Any]:
    label = torch.zeros_like(image, dtype=torch.uint8) if label is None else label
    return {"image": image, "label": label, "volume": torch.arange(len(image))}


def smooth(num: int, height: int = 40, width: int = 40) -> torch.Tensor:
    noise = np.random.default_rng(0).random((num, 1, height, width))
    blurred = ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    return torch.from_numpy((blurred - blurred.min()) / np.ptp(blurred)).float()


@pytest.mark.parametrize(
    ("rule", "mirroring"), [*((rule, False) for rule in RULES), ("affine", True)]
)
def test_matrix__maps_a_landmark_to_where_it_came_from(rule: str, mirroring: bool) -> None:
    turns = mirroring or rule.startswith("rot_flip")
    height, width = 60 if turns else 48, 60
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    spot = torch.exp(-((rows - 20.0) ** 2 + (columns - 35.0) ** 2) / 18)
    batch = batch_of(spot.repeat(24, 1, 1, 1))

    result = SliceAugmentation(rule, mirroring=mirroring)(batch, generator=generator())

    for image, matrix in zip(result["image"][:, 0], result["matrix"], strict=True):
        weight = image / image.sum()
        seen = torch.tensor([(weight * columns).sum(), (weight * rows).sum(), 1.0])
        torch.testing.assert_close(matrix @ seen, torch.tensor([35.0, 20.0]), rtol=0, atol=0.15)


@pytest.mark.parametrize("rule", RULES)
def test_labels__move_with_their_image(rule: str) -> None:
    image = (smooth(16) > 0.5).float()
    batch = {**batch_of(image, image.to(torch.uint8) * 2), "registered_label": image.byte()}
    result = SliceAugmentation(rule, interpolation="nearest")(batch, generator=generator())
    assert result["label"].dtype == torch.uint8
    assert torch.equal(result["label"], result["image"].to(torch.uint8) * 2)
    assert torch.equal(result["registered_label"], result["image"].to(torch.uint8))
    assert torch.equal(result["volume"], batch["volume"])


def test_rot_flip__gives_turned_and_mirrored_copies_exactly() -> None:
    image = smooth(1)
    result = SliceAugmentation("rot_flip")(
        batch_of(image.repeat(64, 1, 1, 1)), generator=generator()
    )
    turned = [torch.rot90(image[0, 0], k) for k in range(4)]
    copies = turned + [torch.flip(one, [0]) for one in turned]
    exact = [
        any(torch.allclose(one, copy, atol=1e-4) for copy in copies)
        for one in result["image"][:, 0]
    ]
    rotated = result["matrix"][:, 0, :2].abs().max(dim=1).values < 1 - 1e-6
    assert exact == [not one for one in rotated.tolist()]


def test_rot_flip__equals_scipy_rotation() -> None:
    image = smooth(1)
    result = SliceAugmentation("rotate")(
        batch_of(image.repeat(32, 1, 1, 1)), generator=generator(1)
    )
    for one, matrix in zip(result["image"][:, 0].numpy(), result["matrix"], strict=True):
        angle = math.degrees(math.atan2(float(matrix[1, 0]), float(matrix[0, 0])))
        expected = ndimage.rotate(image[0, 0].numpy(), angle, order=1, reshape=False)
        assert angle == pytest.approx(round(angle), abs=1e-4)
        np.testing.assert_allclose(one[8:-8, 8:-8], expected[8:-8, 8:-8], atol=1e-4)


def test_rot_flip__odds_of_the_papers() -> None:
    # a half is turned and mirrored, a quarter rotated by -20 to 19 degrees, a quarter untouched
    matrices = SliceAugmentation("rot_flip").matrices(40_000, (8, 8), generator())[:, :, :2]
    untouched = (matrices == torch.eye(2)).all(dim=(1, 2))
    angle = torch.rad2deg(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0])).round()
    mirrored = torch.linalg.det(matrices) < 0
    rotated = ~mirrored & (angle.abs() <= 20) & ~untouched
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.01)
    # rotation by 0 degrees counts as untouched: 1 / 40 of the rotated quarter
    assert untouched.float().mean() == pytest.approx(0.25 + 0.25 / 40, abs=0.01)
    assert rotated.float().mean() == pytest.approx(0.25 * 39 / 40, abs=0.01)
    assert (angle[rotated].min(), angle[rotated].max()) == (-20, 19)


def _two_kidneys() -> tuple[torch.Tensor, torch.Tensor]:
    """Return images with a liver at small columns, a right (4) kidney there and a left (3) one."""
    label = torch.zeros(32, 1, 64, 64, dtype=torch.uint8)
    label[:, :, 28:36, 14:22], label[:, :, 28:36, 42:50] = 4, 3
    return (label > 0).float(), label


@pytest.mark.parametrize("rule", ["rotate", "affine", "none"])
def test_laterality__left_and_right_keep_their_sides(rule: str) -> None:
    result = SliceAugmentation(rule)(batch_of(*_two_kidneys()), generator=generator())
    assert (torch.linalg.det(result["matrix"][:, :, :2]) > 0).all()
    columns = torch.arange(64)
    for label in result["label"][:, 0]:
        right, left = ((label == value) * columns for value in (4, 3))
        assert right.sum() / (label == 4).sum() < left.sum() / (label == 3).sum()


def test_laterality__mirrored_images_exchange_their_labels() -> None:
    augmentation = SliceAugmentation("rot_flip", exchanged_labels=[[3, 4]])
    result = augmentation(batch_of(*_two_kidneys()), generator=generator())
    mirrored = torch.linalg.det(result["matrix"][:, :, :2]) < 0
    assert mirrored.any()
    assert not mirrored.all()
    for label, matrix, is_mirrored in zip(
        result["label"][:, 0], result["matrix"], mirrored, strict=True
    ):
        rows, columns = (label == 4).nonzero().float().mean(dim=0)
        original = matrix @ torch.stack([columns, rows, torch.tensor(1.0)])
        # the pixels called "right kidney" now were the left one before, if mirrored
        assert (original[0] > 32) == is_mirrored


def test_intensity__stays_in_0_1_and_leaves_labels() -> None:
    image = smooth(32)
    label = (image > 0.5).byte()
    augmentation = SliceAugmentation("none", intensity=1.0)
    result = augmentation(batch_of(image, label), generator=generator())
    assert (result["image"].min() >= 0, result["image"].max() <= 1) == (True, True)
    assert torch.isfinite(result["image"]).all()
    assert torch.equal(result["label"], label)
    assert ((result["image"] - image).abs().amax(dim=(1, 2, 3)) > 0.02).float().mean() > 0.5


def test_vary_intensity__the_same_under_autocast_and_nothing_of_no_image() -> None:
    image = smooth(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        varied = vary_intensity(image, 1.0, generator=generator())
    assert torch.equal(varied, vary_intensity(image, 1.0, generator=generator()))
    assert vary_intensity(image[:0], 1.0, generator=generator()).shape == (0, 1, 40, 40)


def test_intensity__empty_and_constant_images_stay_finite() -> None:
    image = torch.stack([torch.zeros(1, 9, 11), torch.ones(1, 9, 11)] * 8)
    result = SliceAugmentation("affine", intensity=1.0)(batch_of(image), generator=generator())
    assert torch.isfinite(result["image"]).all()


@pytest.mark.parametrize("rule", RULES)
def test_augmentation__same_seed_same_batch_and_input_unchanged(rule: str) -> None:
    image = smooth(6, 32, 32)
    before = image.clone()
    augmentation = SliceAugmentation(rule, intensity=0.5)
    first, again = (augmentation(batch_of(image), generator=generator(7)) for _ in range(2))
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["matrix"], again["matrix"])
    assert first["image"].shape == image.shape
    assert torch.equal(image, before)


def test_augmentation__global_generator_by_default() -> None:
    torch.manual_seed(1)
    first = SliceAugmentation("affine")(batch_of(smooth(4)))
    torch.manual_seed(1)
    assert torch.equal(first["image"], SliceAugmentation("affine")(batch_of(smooth(4)))["image"])


def test_augmentation__wrong_arguments() -> None:
    with pytest.raises(ValueError, match="rule must be one of"):
        SliceAugmentation("flip")
    with pytest.raises(ValueError, match="interpolation"):
        SliceAugmentation(interpolation="linear")
    with pytest.raises(ValueError, match="mirroring belongs to the rule 'affine'"):
        SliceAugmentation("rotate", mirroring=True)


@pytest.mark.parametrize(
    ("rule", "mirroring"), [("rot_flip", False), ("rot_flip_always", False), ("affine", True)]
)
def test_augmentation__quarter_turns_need_square_slices(rule, mirroring) -> None:
    oblong = batch_of(smooth(2)[..., :-4])
    with pytest.raises(UserError, match="cannot be turned by 90 degrees"):
        SliceAugmentation(rule, mirroring=mirroring)(oblong, generator=generator())
    assert SliceAugmentation("affine")(oblong)["image"].shape == oblong["image"].shape


def test_crop__a_window_inside_the_image_fills_it() -> None:
    height, width = 40, 60
    columns = torch.arange(float(width)).expand(height, -1)
    rows = torch.arange(float(height))[:, None].expand(-1, width)
    image = torch.stack([columns, rows])[:, None].repeat(20, 1, 1, 1)
    result = SliceAugmentation("none", crop=0.5)(batch_of(image), generator=generator())
    for index, side in ((0, width), (1, height)):
        seen = result["image"][index::2, 0]  # at a border up to half a pixel is padding
        spread = seen.amax((1, 2)) - seen.amin((1, 2))
        torch.testing.assert_close(spread, torch.full((20,), (side - 1) / 2), atol=0.6, rtol=0)
        assert float(seen.amin()) >= 0
        assert float(seen.amax()) <= side - 1
    assert float(result["matrix"][:, 0, 2].std()) > 1  # the windows lie in different places
    whole = SliceAugmentation("none", crop=1.0)(batch_of(image), generator=generator())
    torch.testing.assert_close(whole["image"], image, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="crop is a share"):
        SliceAugmentation(crop=0.0)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (7, 7)])
def test_sampling_grid__is_the_formula_bit_by_bit(height, width):
    matrix = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    columns, rows = torch.arange(float(width)), torch.arange(float(height))[:, None]
    parts = matrix[:, :, :, None, None]
    places = parts[:, :, 0] * columns + (parts[:, :, 1] * rows + parts[:, :, 2])
    sides = torch.tensor([width, height])[:, None, None]
    expected = ((2 * places + 1) / sides - 1).movedim(1, -1)
    assert torch.equal(sampling_grid(matrix, (height, width)), expected)
