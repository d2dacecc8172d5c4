"""Two students in one network: what training and evaluation return, and what they deploy."""

import pytest
import torch

from medseg_kit.networks.dual import DualNetwork
from medseg_kit.networks.projectors import projectors_between
from medseg_kit.networks.swin_unet import SwinUNet2D
from medseg_kit.networks.unet2d import UNet2D
from medseg_kit.typing import UserError

SMALL_UNET = {"channels": (4, 8, 8, 8, 8)}
SMALL_SWIN = {"image_size": 32, "window_size": 4, "embed_dim": 12, "num_heads": (1, 1, 2, 2)}


def pair(**options):
    torch.manual_seed(0)
    first, second = UNet2D(1, 3, **SMALL_UNET), SwinUNet2D(1, 3, **SMALL_SWIN)
    return DualNetwork(
        first,
        second,
        projectors=projectors_between(first, second, ("full", "quarter", "eighth"), 8, 4),
        **options,
    )


def test_train__returns_logits_taps_and_projections_of_both():
    network = pair().train()
    result = network(torch.randn(2, 1, 32, 32))
    assert [logits.shape for logits in result["logits"]] == [(2, 3, 32, 32)] * 2
    assert [set(taps) for taps in result["taps"]] == [{"full", "quarter", "eighth"}] * 2
    for scale, side in {"full": 32, "quarter": 8, "eighth": 4}.items():
        for each in result["projected"][scale]:
            projected = each.maps()
            assert projected.shape == (2, 4, side, side)
            torch.testing.assert_close(projected.norm(dim=1), torch.ones(2, side, side))


def test_train__without_projectors_there_are_no_projections():
    network = DualNetwork(UNet2D(1, 3, **SMALL_UNET), UNet2D(1, 3, **SMALL_UNET)).train()
    assert set(network(torch.randn(2, 1, 16, 16))) == {"logits", "taps"}


def test_gradient__reaches_every_parameter():
    network = pair().train()
    result = network(torch.randn(2, 1, 32, 32))
    total = sum(logits.square().sum() for logits in result["logits"])
    total = total + sum(
        a.maps()[:, 0].sum() + b.maps()[:, 0].sum() for a, b in result["projected"].values()
    )
    total.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("deploy", ["first", "second", "mean"])
def test_eval__one_tensor_of_the_deployed_logits(deploy):
    network = pair(deploy=deploy).eval()
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        first, second = network.first(image), network.second(image)
        expected = {"first": first, "second": second, "mean": (first + second) / 2}[deploy]
        torch.testing.assert_close(network(image), expected)


@pytest.mark.slow
@pytest.mark.parametrize("deploy", ["first", "mean"])
def test_eval__exports_the_deployed_logits(deploy):
    students = (UNet2D(1, 3, (4, 8), (0.0, 0.0)) for _ in range(2))
    network = DualNetwork(*students, deploy=deploy).eval()
    image = torch.randn(1, 1, 8, 8)
    exported = torch.export.export(network, (image,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(image), network(image))


def test_autocast__training_step_is_finite():
    network = pair().train()
    with torch.autocast("cpu", torch.bfloat16):
        result = network(torch.randn(2, 1, 32, 32))
    sum(logits.float().square().mean() for logits in result["logits"]).backward()
    students = (*network.first.parameters(), *network.second.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in students)


def test_eval__runs_only_the_deployed_student():
    network = pair(deploy="first").eval()
    network.second.register_forward_hook(lambda *_: pytest.fail("the second student ran"))
    network(torch.randn(1, 1, 32, 32))


def test_state__keys_start_with_the_part_they_belong_to():
    keys = pair().state_dict()
    assert {key.split(".")[0] for key in keys} == {"first", "second", "projectors"}


def test_deploy__unknown_is_an_error():
    with pytest.raises(UserError, match="'best'"):
        pair(deploy="best")


def test_students__without_taps_are_an_error():
    with pytest.raises(UserError, match="Linear cannot be a student"):
        DualNetwork(UNet2D(1, 3, **SMALL_UNET), torch.nn.Linear(1, 1))


def test_students__share_their_weights_and_leave_the_projectors_out():
    network = pair(deploy="mean").eval()
    students = network.students().eval()
    image = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(students(image), network(image))
    assert not any(key.startswith("projectors") for key in students.state_dict())
    assert next(students.parameters()) is next(network.parameters())
