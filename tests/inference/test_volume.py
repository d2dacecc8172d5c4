from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer

from medseg_kit.inference.stitch import OUTSIDE_LOGIT
from medseg_kit.inference.volume import VolumeInferer

# Logits here are of order 10: 1e-5 is 1e-6 of their range.
TOLERANCE = 1e-5


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("size", [(20, 17, 23), (8, 30, 9)])
@pytest.mark.parametrize("overlap", [0.25, 0.6])
def test_volume_inferer__equals_monai(network, mode, size, overlap):
    image = torch.randn(1, 1, *size)
    expected = SlidingWindowInferer((12, 12, 12), 2, overlap, mode=mode)(image, network)

    result = VolumeInferer((12, 12, 12), overlap=overlap, mode=mode)(image, network)

    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected, rtol=0, atol=TOLERANCE)


def test_volume_inferer__open_window_sides_and_batches(network):
    images = torch.randn(2, 1, 14, 9, 11)
    expected = SlidingWindowInferer((8, -1, 8), 3)(images, network)

    result = VolumeInferer((8, -1, 8), cpu_batch_size=3)(images, network)

    torch.testing.assert_close(result, expected, rtol=0, atol=TOLERANCE)


def test_volume_inferer__halves_the_batch_when_memory_runs_out(network, caplog):
    sizes = []

    def forgetful(windows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(windows))
        if len(windows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network(windows)

    image = torch.randn(1, 1, 20, 20, 20)
    result = VolumeInferer((12, 12, 12), cpu_batch_size=4)(image, forgetful)

    torch.testing.assert_close(
        result, VolumeInferer((12, 12, 12))(image, network), rtol=0, atol=TOLERANCE
    )
    assert sizes[:3] == [4, 2, 1]
    assert "2 windows a batch" in caplog.text


def test_volume_inferer__raises_when_one_window_does_not_fit():
    def hopeless(windows: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        VolumeInferer(8)(torch.zeros(1, 1, 8, 8, 8), hopeless)


def test_volume_inferer__fast_runs_only_windows_with_body(network):
    image = torch.zeros(1, 1, 64, 16, 16)
    image[:, :, 4:20, 2:14, 2:14] = 1 + 0.1 * torch.randn(16, 12, 12)
    full = VolumeInferer(16, overlap=0)(image, network)

    fast = VolumeInferer(16, overlap=0, fast=True)(image, network)

    assert fast[0, 0, 50].eq(OUTSIDE_LOGIT).all()
    assert fast[0, 1:, 50].eq(0).all()
    inside = full[..., 4:20, :, :].argmax(1) == fast[..., 4:20, :, :].argmax(1)
    assert inside.float().mean() > 0.98


@pytest.mark.usefixtures("with_bf16")
def test_volume_inferer__fast_keeps_named_modules_in_float32(network):
    seen = []
    network.first.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    network.second.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    image = torch.randn(1, 1, 16, 16, 16)

    VolumeInferer(16, fast=True, full_precision=["second"])(image, network)
    assert seen == [torch.bfloat16, torch.float32]

    seen.clear()
    VolumeInferer(16, full_precision=["second"])(image, network)
    assert seen == [torch.float32, torch.float32]
    assert "forward" not in vars(network.second)


def test_volume_inferer__fast_on_an_empty_image(network):
    result = VolumeInferer(16, fast=True)(torch.zeros(1, 1, 20, 20, 20), network)
    assert torch.isfinite(result).all()


def test_volume_inferer__answer_of_another_size():
    with pytest.raises(ValueError, match="answered a window of"):
        VolumeInferer(8)(torch.zeros(1, 1, 8, 8, 8), lambda windows: windows[..., ::2])


@pytest.mark.parametrize("arguments", [{"overlap": 1.0}, {"cpu_batch_size": 0}])
def test_volume_inferer__wrong_arguments(arguments):
    with pytest.raises(ValueError, match=r"must be in|at least 1"):
        VolumeInferer(8, **arguments)
