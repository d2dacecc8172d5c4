"""Schedules: golden values, and clamping past the planned end."""

import pytest

from medseg_kit.engines.schedules import constant, cosine, linear, poly


def test_poly__half_way():
    assert poly()(50, 100) == pytest.approx(0.535887, abs=1e-6)


def test_cosine__golden_values():
    factor = cosine()
    assert [round(factor(step, 100), 6) for step in (0, 50, 100)] == [1.0, 0.5, 0.0]


def test_cosine__warm_up_rises_from_the_first_step():
    factor = cosine(warmup=0.1)
    assert [round(factor(step, 100), 6) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]


def test_linear__ends():
    assert [linear(0.01, 1.0)(step, 10) for step in (0, 10)] == [0.01, 1.0]


@pytest.mark.parametrize("schedule", [constant(), cosine(), poly(), linear(0.0, 1.0)])
def test_schedule__clamps_after_the_end(schedule):
    assert schedule(250, 100) == schedule(100, 100)


def test_total_steps__must_be_positive():
    with pytest.raises(ValueError, match="total_steps"):
        cosine()(0, 0)


def test_warmup__must_be_a_share():
    with pytest.raises(ValueError, match="5"):
        cosine(warmup=5)
