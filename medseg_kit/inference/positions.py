"""Which third of an organ a slice belongs to: from the ground truth, or from the support scan.

FedCoWPro (section V-D) cuts the organ's extent of support and query into three parts and compares
a query slice with the support slice in the middle of its part. The papers take the query's extent
from the ground truth (`oracle_parts`). Without one, the query is laid beside the support scan
along the body and takes the support's extent (`find_parts`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from medseg_kit.networks.one_shot import ABSENT
from medseg_kit.networks.support_prototypes import NUM_PARTS, SupportScan

RULES = ("aligned", "body", "whole")
PROFILE_SIZE = 16  # pixels a side of a slice's descriptor
MIN_OVERLAP = 0.8  # of the shorter scan
PRIOR = 0.5  # loss of correlation per squared share of the scan away from the body match
SCALES = (0.85, 0.92, 1.0, 1.08, 1.17)  # of the query's length along the body


def support_slices(num_slices: int) -> list[int]:
    """Return the middle slice of each part among the slices that show the organ.

    >>> support_slices(12)
    [2, 6, 10]
    """
    return [(2 * part + 1) * num_slices // (2 * NUM_PARTS) for part in range(NUM_PARTS)]


def extents(labels: torch.Tensor, num_organs: int) -> torch.Tensor:
    """Return the first and last slice of each organ, ``(K, 2)`` float; NaN where it is absent.

    Args:
        labels: Label values ``(D, H, W)``.
        num_organs: K, the values 1 to K.
    """
    result = torch.full((num_organs, 2), torch.nan)
    for index in range(num_organs):
        present = (labels == index + 1).flatten(1).any(dim=1).nonzero()[:, 0]
        if len(present):
            result[index, 0], result[index, 1] = present[0], present[-1]
    return result


def parts_of(position: torch.Tensor, extent: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """Return the part of each slice in each organ's extent, ``(D, K)`` int64.

    Args:
        position: Place of each slice in the numbering of the extents, ``(D,)``.
        extent: First and last slice of each organ, ``(K, 2)``; NaN where it is absent.
        margin: Share of the extent by which a slice may lie outside; it belongs to the first or
            last part then. Slices further outside, and absent organs, get `ABSENT`.
    """
    first, last = extent[None, :, 0], extent[None, :, 1]
    length = (last - first).clamp(min=1.0)
    place = (position[:, None] - first) / length
    part = (place * NUM_PARTS).floor().clamp(0, NUM_PARTS - 1)
    # half a slice and rounding: the extent's own slices are inside, also of a single-slice organ
    slack = margin + 0.5 / length
    inside = (place >= -slack) & (place <= (last - first) / length + slack)
    return torch.where(inside, part, torch.tensor(float(ABSENT))).nan_to_num(ABSENT).long()


def oracle_parts(labels: torch.Tensor, num_organs: int) -> torch.Tensor:
    """Return the part of each slice from the ground truth, ``(D, K)``; outside `ABSENT`.

    Args:
        labels: Label values ``(D, H, W)``.
        num_organs: K, the values 1 to K.
    """
    place = torch.arange(len(labels), dtype=torch.float32)
    return parts_of(place, extents(labels, num_organs))


def slice_profiles(slices: torch.Tensor) -> torch.Tensor:
    """Return a descriptor of each slice ``(D, P)``: a small picture less the scan's mean picture.

    What all slices share, such as the outline of the body, is thus left out. Norm 1; slices
    without contrast (no body) are zeros.

    Args:
        slices: ``(D, C, H, W)``; the first channel is looked at.
    """
    small = functional.adaptive_avg_pool2d(slices[:, :1].float(), PROFILE_SIZE).flatten(1)
    contrast = small.std(dim=1, keepdim=True)
    body = contrast > 1e-3 * contrast.max()
    small = small - small.mean(dim=0, keepdim=True)
    small = small - small.mean(dim=1, keepdim=True)
    norm = small.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.where(body, small / norm, 0.0).cpu()


def find_parts(
    profiles: torch.Tensor,
    spacing: float,
    scans: Sequence[SupportScan],
    *,
    rule: str = "aligned",
    margin: float = 0.0,
) -> torch.Tensor:
    """Return the part of each query slice without a ground truth, ``(D, K)``.

    Each query slice is given a place in the support scan, and belongs to the part of the support
    organ's extent in which that place lies; up to `margin` beyond the extent it belongs to the part
    at its end, further away the organ is taken for absent. The place comes from a rule:

    - ``aligned``: the shift (in mm) and stretch along the body under which the small pictures of
      the query's slices resemble those of the support most, by mean correlation over all slices
      that meet. Scans may cover different lengths of the body.
    - ``body``: the relative position inside the body's extent. Right only for scans that cover the
      same length.
    - ``whole``: no place at all. The whole query is cut into three parts, and no slice is left out,
      as the text of FedCoWPro has it.

    With several support scans the extents are those of all scans, averaged in the query.

    Args:
        profiles: Descriptors of the query's slices, from `slice_profiles`.
        spacing: Distance of the query's slices in mm.
        scans: The support scans.
        rule: "aligned" or "body".
        margin: Share of an organ's extent, see `parts_of`.

    Raises:
        ValueError: For an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {list(RULES)}, got {rule!r}")
    place = torch.arange(len(profiles), dtype=torch.float32)
    if rule == "whole":
        known = torch.stack([scan.extents for scan in scans]).isfinite().any(dim=0)
        ends = torch.tensor([0.0, len(profiles) - 1.0])
        return parts_of(place, torch.where(known, ends, torch.nan))
    moved = []
    for scan in scans:
        scale, shift = (_align if rule == "aligned" else _match_bodies)(profiles, spacing, scan)
        moved.append((scan.extents - shift) / scale)  # support slice = scale * query slice + shift
    extent = torch.stack(moved).nanmean(dim=0)
    return parts_of(place, extent, margin)


def _match_bodies(profiles: torch.Tensor, spacing: float, scan: SupportScan) -> tuple[float, float]:
    """Return scale and shift that lay the body's first and last slice on each other."""
    del spacing
    ends = []
    for descriptors in (profiles, scan.profile):
        body = descriptors.any(dim=1).nonzero()[:, 0]
        first, last = (int(body[0]), int(body[-1])) if len(body) else (0, len(descriptors) - 1)
        ends.append((first - 0.5, last + 0.5))
    (query_start, query_end), (start, end) = ends
    scale = (end - start) / (query_end - query_start)
    return scale, start - scale * query_start


def _align(profiles: torch.Tensor, spacing: float, scan: SupportScan) -> tuple[float, float]:
    """Return scale and shift, in slices, under which the two scans resemble each other most."""
    query, support = len(profiles), len(scan.profile)
    alike = profiles @ scan.profile.T  # (Dq, Ds) correlations
    body_scale, body_shift = _match_bodies(profiles, spacing, scan)
    ends = torch.tensor([0.0, query - 1.0])
    expected = body_scale * ends + body_shift
    best, answer = -torch.inf, (1.0, 0.0)
    for stretch in SCALES:
        scale = stretch * spacing / scan.spacing
        needed = MIN_OVERLAP * min(query, support / scale)
        shifts = torch.arange(-scale * query, support + 0.5, 0.5)
        place = scale * torch.arange(query)[None] + shifts[:, None]  # (shifts, Dq)
        meets = (place >= 0) & (place <= support - 1)
        low = place.clamp(0, support - 1).floor().long()
        high = (low + 1).clamp(max=support - 1)
        rest = place.clamp(0, support - 1) - low
        rows = torch.arange(query)[None].expand_as(low)
        values = (1 - rest) * alike[rows, low] + rest * alike[rows, high]
        count = meets.sum(dim=1)
        mean = (values * meets).sum(dim=1) / count.clamp(min=1)
        mean[count < max(1.0, needed - 1)] = -torch.inf
        off = (scale * ends[None] + shifts[:, None] - expected) / support
        mean = mean - PRIOR * off.square().mean(dim=1)
        top = int(mean.argmax())
        if float(mean[top]) > best:
            best, answer = float(mean[top]), (scale, float(shifts[top]))
    return answer
