import pytest
import torch
from monai.transforms import KeepLargestConnectedComponentd

from medseg_kit.transforms.components import KeepLargestd
from medseg_kit.typing import UserError


@pytest.mark.parametrize("size", [(12, 9, 7), (9, 11)])
def test_keep_largest__equals_monai(size):
    labels = torch.randint(0, 4, (1, *size), generator=torch.Generator().manual_seed(0)).byte()
    labels[labels == 3] = 0
    expected = {"pred": labels.clone()}
    for value, number in ((1, 1), (2, 3)):
        reference = KeepLargestConnectedComponentd("pred", value, num_components=number)
        expected = reference(expected)
    result = KeepLargestd("pred", num_regions=[1, 3])({"pred": labels})["pred"]
    assert torch.equal(result, expected["pred"].to(result.dtype))


def test_keep_largest__organs_without_a_number_and_absent_ones_stay():
    labels = torch.tensor([[[1, 0, 1, 1], [0, 0, 0, 0], [2, 0, 0, 2]]], dtype=torch.uint8)
    result = KeepLargestd("pred", num_regions=[1, None, 1])({"pred": labels})["pred"]
    assert result.tolist() == [[[0, 0, 1, 1], [0, 0, 0, 0], [2, 0, 0, 2]]]
    assert labels[0, 0, 0] == 1  # the input is not changed


@pytest.mark.parametrize("wrong", [{"liver": 1}, [0], ["1"]])
def test_keep_largest__what_is_no_number_of_regions_is_refused_at_once(wrong):
    with pytest.raises(UserError, match=r"such as \[1, null, 2\]"):
        KeepLargestd("pred", num_regions=wrong)
