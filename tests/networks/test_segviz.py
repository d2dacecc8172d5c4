"""SegViz network: the counts and shapes of the paper's code, and the fusion rule."""

import pytest
import torch
from monai.networks.nets import UNet

from medseg_kit.networks.segviz import ABSENT_HEAD_LOGIT, SegVizUNet, TaskNorm

SMALL = {"channels": (4, 8, 16), "strides": (2, 2), "num_res_units": 1}
ORGANS = ["liver", "spleen", "pancreas"]


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters__one_head():
    network = SegVizUNet(3, 1, ["liver"])
    assert count(network) == 4_808_917
    assert count(network.representation) == 4_807_072
    assert count(network.heads["liver"]) == 1_845


def test_parameters__representation_does_not_grow_with_heads():
    network = SegVizUNet(3, 1, ORGANS)
    assert count(network.representation) == 4_807_072
    assert count(network.heads) == 3 * 1_845


def test_parameters__of_one_network_for_all_organs():
    network = UNet(3, 1, 5, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch")
    assert count(network) == 4_812_088
    assert count(network.model[2]) == 5_016


def test_forward__paper_crop_keeps_its_size():
    network = SegVizUNet(3, 1, ["liver"]).train()
    with torch.no_grad():
        logits = network(torch.zeros(1, 1, 128, 128, 32))["logits"]["liver"]
    assert logits.shape == (1, 2, 128, 128, 32)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("task_norm", [False, True])
def test_eval__one_tensor_of_margins(spatial_dims, task_norm):
    torch.manual_seed(0)
    network = SegVizUNet(spatial_dims, 1, ORGANS, task_norm=task_norm, **SMALL)
    image = torch.randn(2, 1, *[16] * spatial_dims)
    fused = network.eval()(image)
    assert fused.shape == (2, 4, *[16] * spatial_dims)
    assert torch.equal(fused[:, 0], torch.zeros_like(fused[:, 0]))


@pytest.mark.parametrize("task_norm", [False, True])
def test_eval__site_equals_its_channel_of_the_fused_model(task_norm):
    torch.manual_seed(0)
    fused = SegVizUNet(2, 1, ORGANS, task_norm=task_norm, **SMALL).eval()
    site = SegVizUNet(2, 1, ORGANS, heads=["spleen"], task_norm=task_norm, **SMALL).eval()
    state = fused.state_dict()
    site.load_state_dict({key: state[key] for key in site.state_dict()})
    image = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(site(image)[:, 2], fused(image)[:, 2])
    assert (site(image)[:, [1, 3]] == ABSENT_HEAD_LOGIT).all()


def test_argmax__is_the_head_with_the_highest_probability_above_half():
    network = SegVizUNet(2, 1, ORGANS, **SMALL)
    logits = {organ: torch.randn(1, 2, 8, 8) for organ in ORGANS}
    foreground = torch.stack([torch.softmax(logits[organ], 1)[:, 1] for organ in ORGANS], 1)
    expected = torch.where(foreground.amax(1) > 0.5, foreground.argmax(1) + 1, 0)
    assert torch.equal(network._fuse(logits).argmax(1), expected)


def test_heads__start_different():
    network = SegVizUNet(3, 1, ["liver", "spleen"], **SMALL)
    first, second = network.heads["liver"], network.heads["spleen"]
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("task_norm", [False, True])
def test_gradient__reaches_every_parameter(task_norm):
    network = SegVizUNet(2, 1, ORGANS, task_norm=task_norm, **SMALL).train()
    logits = network(torch.randn(2, 1, 16, 16))["logits"]
    sum(value.square().sum() for value in logits.values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_task_norm__each_chunk_has_its_own_statistics():
    norm = TaskNorm(torch.nn.BatchNorm1d(1, momentum=1.0), ["a", "b"]).train()
    norm(torch.cat([torch.full((4, 1), 1.0), torch.full((4, 1), 5.0)]))
    assert norm.norms["a"].running_mean.item() == 1.0
    assert norm.norms["b"].running_mean.item() == 5.0


def test_export__eval_path():
    network = SegVizUNet(3, 1, ORGANS, task_norm=True, **SMALL).eval()
    image = torch.randn(1, 1, 8, 8, 8)
    exported = torch.export.export(network, (image,)).module()
    torch.testing.assert_close(exported(image), network(image))


def test_size__error_names_the_size_that_fits():
    with pytest.raises(ValueError, match=r"divisible by 4; pad to \[12, 8\]"):
        SegVizUNet(2, 1, ORGANS, **SMALL)(torch.zeros(1, 1, 10, 8))


@pytest.mark.parametrize("heads", [["gallbladder"], []])
def test_heads__unknown_or_none_is_an_error(heads):
    with pytest.raises(ValueError, match="organs"):
        SegVizUNet(2, 1, ORGANS, heads=heads, **SMALL)


@pytest.mark.parametrize("task_norm", [False, True])
def test_frozen_representation__only_heads_learn(task_norm):
    torch.manual_seed(0)
    network = SegVizUNet(
        2, 1, ["a", "b"], task_norm=task_norm, frozen_representation=True, channels=(4, 8, 16),
        strides=(2, 2),
    ).train()  # fmt: skip
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    logits = network(torch.randn(2, 1, 8, 8))["logits"]
    torch.stack([value.square().mean() for value in logits.values()]).sum().backward()
    optimizer.step()
    changed = {
        key for key, value in network.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed
    assert all(key.startswith("heads.") for key in changed)
    assert {key.split(".")[1] for key in changed} == {"a", "b"}


def test_answer__is_the_heads_own_decision():
    torch.manual_seed(0)
    full = SegVizUNet(2, 1, ["a", "b"], channels=(4, 8), strides=(2,)).eval()
    one = SegVizUNet(2, 1, ["a", "b"], channels=(4, 8), strides=(2,), answer=["b"]).eval()
    one.load_state_dict(full.state_dict())
    image = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        logits, alone = full(image), one(image)
    assert repr(full) != repr(one)  # a finished prediction of the one is none of the other
    assert torch.equal(alone[:, 2], logits[:, 2])
    assert torch.equal(alone.argmax(dim=1) == 2, logits[:, 2] > 0)
    assert not (alone.argmax(dim=1) == 1).any()
    with pytest.raises(ValueError, match="'c'"):
        SegVizUNet(2, 1, ["a", "b"], channels=(4, 8), strides=(2,), answer=["c"])
