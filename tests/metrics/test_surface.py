import itertools
import math

import numpy as np
import pytest

from medseg_kit.metrics.surface import hausdorff, hd95, surface, surface_distances, union_box


def loop_surface(mask):
    """Surface from the definition: a voxel with a face neighbour outside mask or image."""
    points = []
    for point in itertools.product(*map(range, mask.shape)):
        if not mask[point]:
            continue
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            neighbour = list(point)
            neighbour[axis] += step
            inside = 0 <= neighbour[axis] < mask.shape[axis]
            if not inside or not mask[tuple(neighbour)]:
                points.append(point)
                break
    return points


def loop_directed(from_points, to_points, spacing):
    return [
        min(
            math.dist(
                [a * s for a, s in zip(p, spacing, strict=True)],
                [b * s for b, s in zip(q, spacing, strict=True)],
            )
            for q in to_points
        )
        for p in from_points
    ]


def percentile(values, level):
    """Linear interpolation between order statistics, written out."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * level / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def loop_hd95(pred, reference, spacing):
    pred_points, reference_points = loop_surface(pred), loop_surface(reference)
    distances = loop_directed(pred_points, reference_points, spacing)
    return percentile(distances + loop_directed(reference_points, pred_points, spacing), 95)


def asymmetric_toy():
    """A line of 100 voxels against the same line plus one outlier voxel 30 rows away."""
    reference = np.zeros((41, 104), dtype=bool)
    reference[5, 2:102] = True
    pred = reference.copy()
    pred[35, 50] = True
    return pred, reference


def test_hd95__two_voxels_three_apart():
    pred, reference = np.zeros((2, 9, 9, 9), dtype=bool)
    pred[1, 4, 4], reference[4, 4, 4] = True, True
    assert hd95(pred, reference) == 3.0
    assert hd95(pred, reference, spacing=(2.5, 1.0, 1.0)) == 7.5


def test_hd95__asymmetric_toy_is_percentile_of_concatenation():
    pred, reference = asymmetric_toy()
    pred[6:17, 60] = True  # 12 far voxels in 113: above 5 % of one list, and of both lists together
    pred[4, 10:40] = True
    pred_points, reference_points = loop_surface(pred), loop_surface(reference)
    forward = loop_directed(pred_points, reference_points, (1, 1))
    backward = loop_directed(reference_points, pred_points, (1, 1))
    expected = percentile(forward + backward, 95)
    larger_percentile = max(percentile(forward, 95), percentile(backward, 95))
    assert larger_percentile != pytest.approx(
        expected
    )  # else the toy would not tell the definitions apart
    assert hd95(pred, reference) == pytest.approx(expected)


def test_hausdorff__is_the_outlier_that_hd95_ignores():
    reference = np.zeros((40, 60), dtype=bool)
    reference[10:30, 10:30] = True
    pred = reference.copy()
    pred[20, 49] = True  # 20 columns from the square
    assert hausdorff(pred, reference) == (20.0, 0.0)
    assert hausdorff(pred, reference, spacing=(1.0, 0.5)) == (10.0, 0.0)


def test_hd95__one_outlier_in_a_hundred_is_ignored():
    pred, reference = asymmetric_toy()
    assert hd95(pred, reference) == 0.0
    assert surface_distances(pred, reference).max() == 30.0


@pytest.mark.parametrize(
    ("shape", "spacing"), [((9, 11), (1.5, 0.7)), ((7, 6, 5), (3.0, 0.8, 1.1))]
)
def test_hd95__matches_loop_on_random_masks(shape, spacing):
    generator = np.random.default_rng(4)
    for _ in range(5):
        pred, reference = generator.random((2, *shape)) > 0.6
        assert hd95(pred, reference) == pytest.approx(loop_hd95(pred, reference, (1,) * len(shape)))
        assert hd95(pred, reference, spacing=spacing) == pytest.approx(
            loop_hd95(pred, reference, spacing)
        )


def test_hd95__symmetric_and_scales_with_spacing():
    pred, reference = np.random.default_rng(1).random((2, 8, 9, 7)) > 0.7
    assert hd95(pred, reference) == hd95(reference, pred)
    assert hd95(pred, reference, spacing=(3, 3, 3)) == pytest.approx(3 * hd95(pred, reference))


def test_surface__touching_the_image_border_counts():
    assert surface(np.ones((3, 3), dtype=bool)).sum() == 8


def test_union_box__of_empty_masks_is_the_image():
    empty = np.zeros((3, 4), dtype=bool)
    assert union_box(empty, empty) == (slice(0, 3), slice(0, 4))


def test_hd95__empty_mask_is_refused():
    full = np.ones((3, 3), dtype=bool)
    with pytest.raises(ValueError, match="score_masks"):
        hd95(full, ~full)
