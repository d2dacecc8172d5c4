from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_kit.fl import state as algebra


def _state(*values, dtype=torch.float32):
    return {"w": torch.tensor(values, dtype=dtype)}


def test_weighted_mean__golden():
    states = {"a": _state(1.0, 2.0), "b": _state(4.0, 8.0)}
    mean = algebra.weighted_mean(states, {"a": 1, "b": 2})
    assert mean["w"].tolist() == [3.0, 6.0]


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5),
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6),
)
def test_weighted_mean__of_equals_is_identity(values, weights):
    sites = [f"s{number}" for number in range(len(weights))]
    states = {site: _state(*values) for site in sites}
    mean = algebra.weighted_mean(states, dict(zip(sites, weights, strict=True)))
    assert algebra.digest(mean) == algebra.digest(states["s0"])


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=6),
    weights=st.lists(st.floats(1e-3, 1e3), min_size=6, max_size=6),
)
def test_weighted_mean__is_convex_and_ignores_order(values, weights):
    states = {f"s{number}": _state(value) for number, value in enumerate(values)}
    shares = dict(zip(states, weights, strict=False))
    mean = algebra.weighted_mean(states, shares)["w"]
    assert min(values) <= float(mean) <= max(values)
    backwards = dict(reversed(states.items()))
    assert torch.equal(algebra.weighted_mean(backwards, shares)["w"], mean)


def test_weighted_mean__blocks_equal_a_plain_loop(monkeypatch):
    monkeypatch.setattr(algebra, "BLOCK", 7)
    torch.manual_seed(0)
    states = {site: {"w": torch.randn(3, 5, 2), "scalar": torch.randn(())} for site in "abc"}
    weights = {"a": 1.0, "b": 2.0, "c": 5.0}
    mean = algebra.weighted_mean(states, weights)
    for key in ("w", "scalar"):
        total = sum(weights[site] / 8 * states[site][key].double() for site in "abc")
        assert torch.equal(mean[key], total.float())
        assert mean[key].shape == states["a"][key].shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weighted_mean__keeps_float_dtypes(dtype):
    mean = algebra.weighted_mean(
        {"a": _state(1, dtype=dtype), "b": _state(3, dtype=dtype)}, {"a": 1, "b": 1}
    )
    assert mean["w"].dtype == dtype
    assert float(mean["w"]) == 2.0


def test_weighted_mean__integer_buffers_come_from_the_first_site_and_keep_dtype():
    states = {
        "b": {"n": torch.tensor(9), "flag": torch.tensor(False)},
        "a": {"n": torch.tensor(5), "flag": torch.tensor(True)},
    }
    mean = algebra.weighted_mean(states, {"a": 1, "b": 3})
    assert mean["n"].dtype == torch.int64
    assert (int(mean["n"]), bool(mean["flag"])) == (5, True)


def test_weighted_mean__each_key_over_its_holders_only():
    states = {"a": {"w": torch.ones(1), "head": torch.full((1,), 7.0)}, "b": {"w": torch.zeros(1)}}
    mean = algebra.weighted_mean(states, {"a": 1, "b": 3})
    assert (float(mean["w"]), float(mean["head"])) == (0.25, 7.0)


def test_weighted_mean__does_not_alias_its_input():
    state = _state(1.0)
    mean = algebra.weighted_mean({"a": state}, {"a": 1})
    mean["w"].add_(1)
    assert float(state["w"]) == 1.0


def test_weighted_mean__channels_last_tensors():
    tensor = torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    mean = algebra.weighted_mean({"a": {"w": tensor}, "b": {"w": tensor}}, {"a": 1, "b": 1})
    assert torch.equal(mean["w"], tensor)


@pytest.mark.parametrize(
    ("states", "weights", "message"),
    [
        ({}, {}, "no site answered"),
        ({"a": _state(1.0)}, {}, "'a' has the weight nan"),
        ({"a": _state(1.0)}, {"a": -1}, "weight -1"),
        ({"a": _state(1.0)}, {"a": math.inf}, "weight inf"),
        ({"a": _state(1.0)}, {"a": 0}, "weight 0"),
        ({"a": _state(1.0), "b": _state(1.0, 2.0)}, {"a": 1, "b": 1}, "'b' has"),
    ],
)
def test_weighted_mean__wrong_input(states, weights, message):
    with pytest.raises(ValueError, match=message):
        algebra.weighted_mean(states, weights)


def test_norm_of_difference__golden():
    change = algebra.difference(
        {"w": torch.tensor([3.0, 4.0]), "n": torch.tensor(5)},
        {"w": torch.zeros(2), "n": torch.tensor(1)},
    )
    assert algebra.norm(change) == 5.0


def test_digest__depends_on_keys_values_dtype_and_shape_not_on_order():
    one = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert algebra.digest(one) == algebra.digest(dict(reversed(one.items())))
    others = [
        {"a": torch.zeros(2), "c": torch.ones(2)},
        {"a": torch.zeros(2), "b": torch.ones(2, 1)},
        {"a": torch.zeros(2), "b": torch.ones(2, dtype=torch.float64)},
        {"a": torch.zeros(2), "b": torch.ones(2, dtype=torch.bfloat16)},
        {"a": torch.zeros(2), "b": torch.tensor([1.0, 1.0000001])},
    ]
    assert len({algebra.digest(state) for state in [one, *others]}) == 1 + len(others)


def test_copy_state__shares_no_memory():
    source = {"w": torch.zeros(2, requires_grad=True)}
    copied = algebra.copy_state(source)
    copied["w"].add_(1)
    assert source["w"].detach().tolist() == [0, 0]
    assert not copied["w"].requires_grad


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"w": torch.zeros(2), "n": torch.tensor(1)}, None),
        ({"w": torch.zeros(2)}, r"wrong keys: 1 missing \(n\)"),
        ({"w": torch.zeros(2), "n": torch.tensor(1), "x": torch.zeros(1)}, r"1 unexpected \(x\)"),
        ({"w": torch.zeros(3), "n": torch.tensor(1)}, r"wrong shapes: w is float32\[3\]"),
        ({"w": torch.zeros(2).double(), "n": torch.tensor(1)}, r"w is float64\[2\]"),
        ({"w": torch.tensor([0.0, math.nan]), "n": torch.tensor(1)}, r"NaN or infinite .* \(w\)"),
        ({"w": torch.tensor([0.0, math.inf]), "n": torch.tensor(1)}, "NaN or infinite"),
        ({"w": torch.tensor([-math.inf, math.inf]), "n": torch.tensor(1)}, "NaN or infinite"),
        ({"w": torch.full((2,), 3e38), "n": torch.tensor(1)}, None),
    ],
)
def test_mismatch__names_the_problem(state, problem):
    import re

    found = algebra.mismatch(state, {"w": "float32[2]", "n": "int64[]"})
    assert found is None if problem is None else re.search(problem, found)
