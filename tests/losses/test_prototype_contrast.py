import pytest
import torch
from torch.nn import functional as F

from medseg_kit.losses.prototype_contrast import FeatureBank, prototype_contrast


def unit(n, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=generator), dim=1)


@pytest.mark.parametrize("balanced", [True, False])
def test_value__as_the_equation_reads(balanced):
    anchors, keys, positive = unit(5), unit(9, seed=1), unit(1, seed=2)[0]
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])
    total = 0.0
    for anchor in anchors:
        up = torch.exp(anchor @ positive / 0.1)
        if balanced:
            z = sum(torch.exp(anchor @ keys[classes == c].t() / 0.1).mean() for c in (0, 1, 2))
        else:
            z = torch.exp(anchor @ keys.t() / 0.1).sum()
        total = total - torch.log(up / (up + z)) / len(anchors)
    found = prototype_contrast(anchors, positive, keys, key_classes=classes if balanced else None)
    torch.testing.assert_close(found, total)


def test_no_anchors_or_keys__zero_with_gradient_zero():
    for anchors, keys in ((unit(4)[:0], unit(3)), (unit(4), unit(3)[:0])):
        anchors = anchors.clone().requires_grad_()
        loss = prototype_contrast(anchors, unit(1)[0], keys)
        loss.backward()
        assert float(loss.detach()) == 0
        assert float(anchors.grad.abs().sum()) == 0


def test_bank__first_in_first_out_by_ids():
    bank = FeatureBank(2, capacity=5, dimension=1)
    for start in (0, 3):
        ids = torch.arange(start, start + 3)
        bank.push(1, ids[:, None].float(), ids)
    assert bank.size(0) == 0
    assert bank.size(1) == 5
    features, classes = bank.draw(1, 10)
    assert sorted(classes.tolist()) == [1, 2, 3, 4, 5]
    assert torch.equal(features[:, 0].long(), classes)
    with pytest.raises(ValueError, match="do not fit"):
        bank.push(1, torch.zeros(6, 1), torch.zeros(6, dtype=torch.int64))


def test_bank__state_round_trip():
    bank = FeatureBank(2, capacity=5, dimension=3)
    bank.push(0, unit(4, 3), torch.arange(4))
    again = FeatureBank(2, capacity=5, dimension=3)
    again.load_state_dict(bank.state_dict())
    found = [torch.sort(item.draw(0, 9)[1]).values for item in (bank, again)]
    assert torch.equal(*found)
    assert torch.equal(again.features, bank.features)
