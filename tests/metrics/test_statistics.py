import numpy as np
import pytest
from scipy import stats

from medseg_kit.metrics.statistics import (
    bootstrap_interval,
    holm,
    paired_comparison,
    patient_means,
    wilcoxon_p,
)


def values(seed, shift=0.0, n=12):
    generator = np.random.default_rng(seed)
    return {f"p{i}": float(value) for i, value in enumerate(generator.normal(0.8 + shift, 0.05, n))}


def test_patient_means__averages_within_a_patient_and_drops_nan():
    assert patient_means([("a", 0.5), ("a", 0.7), ("b", float("nan")), ("c", 1.0)]) == {
        "a": pytest.approx(0.6),
        "c": 1.0,
    }


def test_bootstrap_interval__deterministic_and_independent_of_order():
    sample = values(0)
    backwards = dict(reversed(sample.items()))
    assert bootstrap_interval(sample, num_resamples=500) == bootstrap_interval(
        backwards, num_resamples=500
    )
    assert bootstrap_interval(sample, num_resamples=500) != bootstrap_interval(
        sample, num_resamples=500, seed=1
    )


def test_bootstrap_interval__close_to_normal_theory():
    sample = values(3, n=200)
    low, high = bootstrap_interval(sample, num_resamples=4000)
    array = np.array(list(sample.values()))
    half = 1.96 * array.std(ddof=1) / np.sqrt(array.size)
    assert low == pytest.approx(array.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(array.mean() + half, abs=0.1 * half)


def test_bootstrap_interval__constant_and_single_patient():
    assert bootstrap_interval({"a": 0.5, "b": 0.5}) == (0.5, 0.5)
    assert np.isnan(bootstrap_interval({"a": 0.5})).all()


def test_paired_comparison__uses_shared_patients_only():
    first, second = values(0), values(0, shift=-0.1)
    second.pop("p0")
    result = paired_comparison(first, second, num_resamples=500)
    assert (result["n"], result["n_unpaired"]) == (11, 1)
    assert result["difference"] == pytest.approx(0.1)
    assert result["difference_low"] == pytest.approx(0.1)
    assert result["wilcoxon_p"] < 0.01


def test_paired_comparison__fewer_than_two_patients_has_no_test():
    result = paired_comparison({"a": 1.0}, {"a": 0.5})
    assert result["wilcoxon_p"] is None
    assert result["difference"] == 0.5
    assert paired_comparison({}, {"a": 0.5})["difference"] is None


def test_wilcoxon_p__six_patients_all_better_golden():
    assert wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 64)
    assert wilcoxon_p([0.0, 0.0]) == 1.0


def test_wilcoxon_p__agrees_with_scipy():
    sample = np.random.default_rng(2).normal(0.1, 1, 15)
    assert wilcoxon_p(sample) == stats.wilcoxon(sample).pvalue


def test_holm__golden():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
