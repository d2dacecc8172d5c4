"""FedProx's term: its value, its gradient, and nothing before the first round."""

from types import SimpleNamespace

import pytest
import torch

from medseg_kit.losses.proximal import ProximalTerm


def engine_with(weight: float) -> SimpleNamespace:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, weight)
    return SimpleNamespace(network=network, state=SimpleNamespace(device=torch.device("cpu")))


def test_term__golden_value_and_gradient():
    engine, term = engine_with(3.0), ProximalTerm(mu=0.5)
    term.on_round_start({"weight": torch.tensor([[1.0]])})
    loss = term(engine, {})["proximal"]
    loss.backward()
    assert loss.item() == 0.25 * 4
    assert engine.network.weight.grad.item() == 0.5 * 2


def test_term__zero_before_the_first_round():
    assert ProximalTerm()(engine_with(3.0), {})["proximal"].item() == 0.0


def test_term__zero_lies_on_the_trainers_device():
    engine = engine_with(3.0)
    engine.state.device = torch.device("meta")
    assert ProximalTerm()(engine, {})["proximal"].device.type == "meta"


def test_term__follows_the_received_weights_not_the_live_ones():
    engine, term = engine_with(1.0), ProximalTerm(mu=1.0)
    term.on_round_start(engine.network.state_dict())
    with torch.no_grad():
        engine.network.weight += 2
    assert term(engine, {})["proximal"].item() == 2.0


def test_mu__negative_is_an_error():
    with pytest.raises(ValueError, match="-1"):
        ProximalTerm(-1)
