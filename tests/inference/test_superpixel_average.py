"""One-shot answers averaged over superpixels of the query."""

from __future__ import annotations

import pytest
import torch

from medseg_kit.inference.superpixel_average import average_over_superpixels

SIZE = 32


def two_slices() -> torch.Tensor:
    """Return slices (2, 1, S, S) of two grey values, parted at column 12 and at row 20."""
    slices = torch.zeros(2, 1, SIZE, SIZE)
    slices[0, :, :, 12:] = 3.0
    slices[1, :, 20:] = 3.0
    return slices


def test_average__is_the_mean_of_each_piece_of_each_slice():
    slices = two_slices()
    logits = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    answer = average_over_superpixels(logits, slices, min_size=200, limits=(0.0, 3.0))
    for index in range(2):
        bright = slices[index, 0] > 0
        # smoothing before the cut may move a border by a pixel: look beside it
        inner = bright.roll(2, 0) & bright.roll(2, 1) & bright
        values = answer[index][:, inner]
        torch.testing.assert_close(values, values[:, :1].expand_as(values))
    mean = logits.mean(dim=(2, 3))
    torch.testing.assert_close(answer.mean(dim=(2, 3)), mean)


def test_average__borders_follow_the_image():
    """An answer that spills over a border by two pixels ends at it."""
    slices = two_slices()[:1]
    logits = torch.full((1, 1, SIZE, SIZE), -1.0)
    logits[..., 10:] = 1.0
    answer = average_over_superpixels(logits, slices, min_size=100, limits=(0.0, 3.0))
    assert bool((answer[0, 0] > 0).equal(slices[0, 0] > 0))


@pytest.mark.parametrize("scale", [1.0, 0.001, 1000.0])
def test_average__does_not_depend_on_the_unit_of_the_image(scale):
    slices = two_slices() + torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    logits = torch.randn(2, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(2))

    def averaged(images):
        limits = (float(images.min()), float(images.max()))
        return average_over_superpixels(logits, images, min_size=20, limits=limits)

    torch.testing.assert_close(averaged(scale * slices - 5), averaged(slices))


def test_average__a_volume_without_contrast_keeps_its_answer():
    logits = torch.randn(1, 2, SIZE, SIZE)
    answer = average_over_superpixels(
        logits, torch.ones(1, 1, SIZE, SIZE), min_size=20, limits=(1.0, 1.0)
    )
    assert answer is logits


@pytest.mark.slow
def test_average__many_slices_are_cut_by_several_processes_alike():
    generator = torch.Generator().manual_seed(3)
    slices = torch.rand(32, 1, SIZE, SIZE, generator=generator)
    logits = torch.randn(32, 2, SIZE, SIZE, generator=generator)
    together = average_over_superpixels(logits, slices, min_size=20, limits=(0.0, 1.0))
    for index in range(0, 32, 8):
        few = slice(index, index + 4)
        alone = average_over_superpixels(logits[few], slices[few], min_size=20, limits=(0.0, 1.0))
        torch.testing.assert_close(together[few], alone)
