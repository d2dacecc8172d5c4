"""The three-part protocol: which slices support, and to which part a query slice belongs."""

from __future__ import annotations

import pytest
import torch

from medseg_kit.inference.positions import (
    extents,
    find_parts,
    oracle_parts,
    parts_of,
    slice_profiles,
    support_slices,
)
from medseg_kit.networks.one_shot import ABSENT
from medseg_kit.networks.support_prototypes import SupportScan


def column(*values: int) -> torch.Tensor:
    """Return label slices (D, 2, 2), each of one value."""
    return torch.tensor(values)[:, None, None].expand(-1, 2, 2)


def test_support_slices__middle_of_each_part():
    assert support_slices(12) == [2, 6, 10]
    assert support_slices(1) == [0, 0, 0]


def test_oracle_parts__nine_slices():
    labels = column(0, 0, *[1] * 9, 0)
    expected = [ABSENT, ABSENT, 0, 0, 0, 1, 1, 1, 2, 2, 2, ABSENT]
    assert oracle_parts(labels, 1)[:, 0].tolist() == expected


def test_oracle_parts__one_slice_and_an_absent_organ():
    labels = column(0, 1, 0)
    assert oracle_parts(labels, 2).tolist() == [[-1, -1], [0, -1], [-1, -1]]


def test_parts_of__margin_belongs_to_the_outer_parts():
    extent = torch.tensor([[10.0, 20.0]])
    place = torch.arange(31.0)
    inside = (parts_of(place, extent)[:, 0] != ABSENT).nonzero()[:, 0]
    wider = parts_of(place, extent, margin=0.2)[:, 0]
    assert inside.tolist() == list(range(10, 21))
    assert (wider != ABSENT).nonzero()[:, 0].tolist() == list(range(8, 23))
    assert (int(wider[8]), int(wider[22])) == (0, 2)


def body(depth: int, seed: int = 0) -> torch.Tensor:
    """Return slices (depth, 1, 32, 32) that change smoothly along the body."""
    generator = torch.Generator().manual_seed(seed)
    knots = torch.randn(1, 1, depth // 3 + 2, 32, 32, generator=generator)
    return torch.nn.functional.interpolate(knots, (depth, 32, 32), mode="trilinear")[0].transpose(
        0, 1
    )


@pytest.mark.parametrize("first", [0, 5, 9])
def test_find_parts__aligned_scans_of_different_coverage(first):
    whole = body(40)
    labels = column(*[0] * 12, *[1] * 12, *[0] * 16)
    support = SupportScan(slice_profiles(whole), 4.0, (300.0, 300.0), extents(labels, 1))
    query = slice(first, first + 28)
    noise = 0.1 * torch.randn(28, 1, 32, 32, generator=torch.Generator().manual_seed(1))

    part = find_parts(slice_profiles(whole[query] + noise), 4.0, [support], margin=0.0)

    assert part.tolist() == oracle_parts(labels, 1)[query].tolist()


def test_find_parts__spacing_in_mm():
    whole = body(40)
    labels = column(*[0] * 12, *[1] * 12, *[0] * 16)
    support = SupportScan(slice_profiles(whole), 4.0, (300.0, 300.0), extents(labels, 1))
    part = find_parts(slice_profiles(whole[::2]), 8.0, [support], margin=0.0)
    agree = part == oracle_parts(labels, 1)[::2]
    assert agree.float().mean() > 0.9


def test_find_parts__body_extent():
    whole = torch.zeros(30, 1, 32, 32)
    whole[5:25] = body(20)
    labels = column(*[0] * 8, *[1] * 9, *[0] * 13)
    support = SupportScan(slice_profiles(whole), 1.0, (300.0, 300.0), extents(labels, 1))
    query = torch.cat([torch.zeros(7, 1, 32, 32), body(20, seed=3)])
    part = find_parts(slice_profiles(query), 1.0, [support], rule="body", margin=0.0)[:, 0]
    assert part[10:19].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (part != ABSENT).sum() == 9


def test_find_parts__several_scans_and_organs_that_some_lack():
    whole = body(30)
    profiles = slice_profiles(whole)
    scans = [
        SupportScan(
            profiles, 1.0, (300.0, 300.0), torch.tensor([[10.0, 18.0], [torch.nan, torch.nan]])
        ),
        SupportScan(profiles, 1.0, (300.0, 300.0), torch.tensor([[12.0, 20.0], [3.0, 5.0]])),
    ]
    part = find_parts(profiles, 1.0, scans, margin=0.0)
    assert (part[:, 0] != ABSENT).nonzero()[:, 0].tolist() == list(range(11, 20))
    assert (part[:, 1] != ABSENT).nonzero()[:, 0].tolist() == [3, 4, 5]


def test_find_parts__whole_scan_in_three_parts_whatever_the_extent():
    extent = torch.tensor([[4.0, 5.0], [torch.nan, torch.nan]])
    support = SupportScan(slice_profiles(body(30)), 1.0, (300.0, 300.0), extent)
    part = find_parts(slice_profiles(body(9, seed=3)), 1.0, [support], rule="whole")
    assert part[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (part[:, 1] == ABSENT).all()  # the support lacks it


def test_find_parts__unknown_rule():
    with pytest.raises(ValueError, match="rule must be one of"):
        find_parts(torch.zeros(3, 4), 1.0, [], rule="nearest")
