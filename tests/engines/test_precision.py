"""Mixed precision is used where the device has instructions for it, never where it is slower."""

from __future__ import annotations

import logging

import pytest
import torch

from medseg_kit.engines import precision
from medseg_kit.engines.precision import autocast, has_gain

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget():
    has_gain.cache_clear()
    yield
    has_gain.cache_clear()


@pytest.mark.parametrize(
    ("instructions", "amp", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False}, "bf16", torch.float32),
        ({"avx512_f": True}, "bf16", torch.float32),  # would emulate it
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, "bf16", torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, "bf16", torch.float32),  # slower
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, "bf16", torch.bfloat16),
        ({"bf16": True, "architecture": "ARM64"}, "bf16", torch.bfloat16),
        ({"amx_bf16": True}, "off", torch.float32),
        ({"avx512_bf16": True}, "fp16", torch.float32),
    ],
)
def test_autocast__follows_the_processor(monkeypatch, instructions, amp, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    with autocast(CPU, amp):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == expected


def test_has_gain__an_older_gpu_and_what_the_log_says(monkeypatch, caplog):
    asked = []

    def supported(*, including_emulation):
        asked.append(including_emulation)
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    with caplog.at_level(logging.INFO, logger=precision.__name__):
        assert not has_gain("cuda", "bf16")
        assert not has_gain("cuda", "bf16")  # asked and said once
    assert asked == [False]
    assert caplog.messages == ["this cuda has no fast bf16 instructions: computing in float32"]
    assert has_gain("cuda", "fp16")
