"""Schedules: golden values, and clamping past the planned end."""

import pytest

from medseg_kit.engines.schedules import (
    constant,
    cosine,
    gaussian_ramp,
    linear,
    poly,
    ssl4mis_ramp,
    staircase,
    warmup_poly,
)


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


def test_gaussian_ramp__golden_values():
    ramp = gaussian_ramp()
    found = [0.1 * ramp(step, 4) for step in range(5)]
    assert found == pytest.approx([6.738e-4, 6.0055e-3, 2.86505e-2, 7.31616e-2, 0.1], rel=1e-4)


def test_ssl4mis_ramp__stands_still_in_blocks_and_ends_at_30000():
    ramp = ssl4mis_ramp()
    assert 0.1 * ramp(0, 40_000) == pytest.approx(6.738e-4, rel=1e-4)
    assert ramp(0, 1) == ramp(149, 1) < ramp(150, 1)
    assert ramp(30_000, 40_000) == ramp(40_000, 40_000) == 1


def test_warmup_poly__from_start_to_one_to_zero():
    schedule = warmup_poly(warmup=0.1)
    assert schedule(0, 100) == pytest.approx(1e-3)
    assert schedule(10, 100) == pytest.approx(1)
    assert schedule(55, 100) == pytest.approx(0.5**0.9)
    assert schedule(100, 100) == 0
    with pytest.raises(ValueError, match="warmup"):
        warmup_poly(warmup=1.0)


def test_staircase__one_stage_a_round():
    schedule = staircase(gamma=0.5, num_stages=3)
    assert [schedule(step, 6) for step in range(8)] == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    # FedCoWPro: 1e-3 x 0.96 a round, after 100 rounds
    fedcowpro = 1e-3 * staircase(gamma=0.96, num_stages=100)(100_000, 100_000)
    assert fedcowpro == pytest.approx(1.687e-5, rel=1e-3)
    with pytest.raises(ValueError, match="num_stages must be at least 1"):
        staircase(gamma=0.5, num_stages=0)
