"""CT is told from MR by its values, before and after scaling."""

import pytest
import torch

from medseg_kit.transforms.modality import modality_of, scale_ct_or_mr


def volume(low, high):
    values = torch.rand(1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    return low + (high - low) * values.square()


@pytest.mark.parametrize("low", [-1024.0, -125.0, -110.0])
def test_modality__ct_whose_file_was_windowed(low):
    ct = volume(low, 400.0)
    ct[..., 0] = low
    assert modality_of(scale_ct_or_mr(ct)) == "CT"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1200.0), (-3.0, 4.0), (-90.0, 300.0)])
def test_modality__mr_in_any_unit(low, high):
    assert modality_of(scale_ct_or_mr(volume(low, high))) == "MR"


def test_modality__a_constant_volume_is_mr():
    assert modality_of(scale_ct_or_mr(torch.full((1, 4, 4, 4), 7.0))) == "MR"
