from __future__ import annotations

import pytest
import torch

from medseg_kit.fl.state import digest
from medseg_kit.fl.strategies.fedavg import FedAvg
from medseg_kit.fl.strategies.fedbn import FedBN
from medseg_kit.fl.strategies.selective import SelectiveSync
from medseg_kit.fl.strategy import SiteInfo

ORGANS = ("liver", "spleen")


def _value(number):
    return torch.full((2,), float(number))


def _info(name, keys, *, samples=1, annotated=()):
    return SiteInfo(name, samples, tuple(annotated), frozenset(keys))


def _round(strategy, answers, *, samples=None, number=1):
    for site, state in answers.items():
        strategy.accept(number, site, state, (samples or {}).get(site, 1))
    return strategy.finish(number)


def _segviz(per_site=(("a", "liver", 1), ("b", "spleen", 3)), **options):
    """Sites that hold the representation and the heads of their organ."""
    keys = {"representation.c", "representation.adn.N.weight"}
    state = {key: _value(0) for key in keys} | {f"heads.{organ}.w": _value(0) for organ in ORGANS}
    sites = {
        name: _info(name, {*keys, f"heads.{organ}.w"}, samples=n, annotated=[organ])
        for name, organ, n in per_site
    }
    strategy = SelectiveSync(ORGANS, **options)
    strategy.initialise(state, sites)
    return strategy


def _filled(strategy, site, number):
    return {key: _value(number) for key in strategy.sites[site].keys}


@pytest.mark.parametrize(("weighting", "expected"), [("samples", 3.5), ("equal", 3.0)])
def test_fedavg__weighting(weighting, expected):
    strategy = FedAvg(weighting)
    strategy.initialise({"w": _value(0)}, {name: _info(name, {"w"}) for name in "ab"})
    record = _round(
        strategy, {"a": {"w": _value(2)}, "b": {"w": _value(4)}}, samples={"a": 1, "b": 3}
    )
    assert strategy.global_state["w"].tolist() == [expected] * 2
    assert record == {"sites": ["a", "b"], "digest": digest(strategy.global_state)}


def test_fedavg__averaged_weights_reach_every_client():
    # the public SegViz notebooks average into a loop variable and never write it back
    strategy = FedAvg()
    strategy.initialise({"w": _value(0)}, {name: _info(name, {"w"}) for name in "ab"})
    _round(strategy, {"a": {"w": _value(2)}, "b": {"w": _value(4)}})
    for site in "ab":
        assert strategy.configure(2, site)["w"].tolist() == [3.0, 3.0]


def test_fedavg__absent_site_does_not_count():
    strategy = FedAvg()
    strategy.initialise({"w": _value(0)}, {name: _info(name, {"w"}) for name in "ab"})
    _round(strategy, {"a": {"w": _value(2)}})
    assert strategy.configure(2, "b")["w"].tolist() == [2.0, 2.0]


def test_fedavg__unknown_weighting():
    with pytest.raises(ValueError, match="got 'uniform'"):
        FedAvg("uniform")


def test_finish__without_answers():
    strategy = FedAvg()
    strategy.initialise({"w": _value(0)}, {})
    with pytest.raises(ValueError, match="round 4: no site answered"):
        strategy.finish(4)


def test_join__key_that_the_global_network_lacks():
    with pytest.raises(ValueError, match=r"'a' holds 1 keys .* lacks, e.g. x"):
        FedAvg().initialise({"w": _value(0)}, {"a": _info("a", {"w", "x"})})


def test_fedbn__norms_stay_with_their_site():
    keys = {"model.0.conv.weight", "model.0.adn.N.weight", "model.0.adn.N.running_mean"}
    strategy = FedBN()
    strategy.initialise({key: _value(0) for key in keys}, {s: _info(s, keys) for s in "abc"})
    _round(strategy, {s: {key: _value(n) for key in keys} for s, n in (("a", 2), ("b", 4))})
    norm = "model.0.adn.N.weight"
    assert [float(strategy.configure(2, s)[norm][0]) for s in "ab"] == [2.0, 4.0]
    assert [float(strategy.configure(2, s)["model.0.conv.weight"][0]) for s in "ab"] == [3.0, 3.0]
    # what an unseen site deploys, and what the absent site continues with
    assert float(strategy.deployed_state()[norm][0]) == 3.0
    assert float(strategy.configure(2, "c")[norm][0]) == 3.0


@pytest.mark.parametrize(
    "key",
    [
        "bn1.weight",
        "norm.bias",
        "layer_norm.weight",
        "a.norm2.weight",
        "x.adn.N.norms.liver.bias",
        "layer2.0.downsample.1.running_var",
    ],
)
def test_fedbn__finds_usual_names(key):
    assert FedBN().placement(key) == "per_site_on_server"


@pytest.mark.parametrize(
    "key", ["conv.weight", "abnormal.weight", "adn.A.weight", "heads.N2.w", "l.downsample.0.weight"]
)
def test_fedbn__leaves_other_names(key):
    assert FedBN().placement(key) == "averaged"


@pytest.mark.parametrize(
    ("keys", "message"),
    [(["conv.weight"], "matches no key"), (["bn.weight", "x.1.running_mean"], "overlooks .* x.1")],
)
def test_fedbn__pattern_that_does_not_fit(keys, message):
    with pytest.raises(ValueError, match=message):
        FedBN().initialise({key: _value(0) for key in keys}, {})


def test_selective__representation_averaged_heads_untouched():
    strategy = _segviz()
    _round(
        strategy,
        {"a": _filled(strategy, "a", 2), "b": _filled(strategy, "b", 4)},
        samples={"a": 1, "b": 3},
    )
    a, b = strategy.configure(2, "a"), strategy.configure(2, "b")
    assert a["representation.c"].tolist() == b["representation.c"].tolist() == [3.0, 3.0]
    assert a["representation.adn.N.weight"].tolist() == [3.0, 3.0]
    assert a.keys() & b.keys() == {"representation.c", "representation.adn.N.weight"}
    # bit-equal to the single owner's
    assert a["heads.liver.w"].tolist() == [2.0, 2.0]
    assert b["heads.spleen.w"].tolist() == [4.0, 4.0]
    assert strategy.deployed_state()["heads.spleen.w"].tolist() == [4.0, 4.0]


def test_selective__several_owners_average_by_samples():
    strategy = _segviz((("a", "liver", 1), ("b", "liver", 3)))
    _round(
        strategy,
        {"a": _filled(strategy, "a", 2), "b": _filled(strategy, "b", 4)},
        samples={"a": 1, "b": 3},
    )
    for site in "ab":
        state = strategy.configure(2, site)
        assert state["heads.liver.w"].tolist() == [3.5, 3.5]
        assert state["representation.c"].tolist() == [3.0, 3.0]


def test_selective__head_of_an_absent_owner_stays():
    strategy = _segviz()
    _round(strategy, {"a": _filled(strategy, "a", 2), "b": _filled(strategy, "b", 4)})
    _round(strategy, {"a": _filled(strategy, "a", 6)}, number=2)
    assert strategy.deployed_state()["heads.spleen.w"].tolist() == [4.0, 4.0]
    assert strategy.configure(3, "b")["heads.spleen.w"].tolist() == [4.0, 4.0]
    assert strategy.configure(3, "b")["representation.c"].tolist() == [6.0, 6.0]


def test_selective__holder_that_does_not_annotate_is_no_owner():
    keys = {"representation.c", "heads.liver.w", "heads.spleen.w"}
    sites = {s: _info(s, keys, annotated=[organ]) for s, organ in (("a", "liver"), ("b", "spleen"))}
    strategy = SelectiveSync()
    strategy.initialise({key: _value(0) for key in keys}, sites)
    _round(strategy, {"a": dict.fromkeys(keys, _value(2)), "b": dict.fromkeys(keys, _value(4))})
    assert strategy.deployed_state()["heads.liver.w"].tolist() == [2.0, 2.0]


def test_selective__task_norms_belong_to_the_owner():
    keys = [f"{part}.{organ}.w" for part in ("heads", "representation.N.norms") for organ in ORGANS]
    sites = {
        s: _info(s, {"representation.c", *(k for k in keys if organ in k)}, annotated=[organ])
        for s, organ in (("a", "liver"), ("b", "spleen"))
    }
    strategy = SelectiveSync(ORGANS)
    strategy.initialise({key: _value(0) for key in [*keys, "representation.c"]}, sites)
    _round(strategy, {s: {k: _value(n) for k in sites[s].keys} for s, n in (("a", 2), ("b", 4))})
    deployed = {key: float(value[0]) for key, value in strategy.deployed_state().items()}
    assert deployed == {
        "representation.c": 3.0,
        "heads.liver.w": 2.0,
        "heads.spleen.w": 4.0,
        "representation.N.norms.liver.w": 2.0,
        "representation.N.norms.spleen.w": 4.0,
    }


def test_selective__shared_norms_per_site():
    strategy = _segviz(norm="per_site")
    _round(strategy, {"a": _filled(strategy, "a", 2), "b": _filled(strategy, "b", 4)})
    norm = "representation.adn.N.weight"
    assert [float(strategy.configure(2, s)[norm][0]) for s in "ab"] == [2.0, 4.0]
    assert float(strategy.configure(2, "a")["representation.c"][0]) == 3.0


def test_selective__task_added_to_a_running_federation():
    strategy = _segviz((("a", "liver", 1),))
    _round(strategy, {"a": _filled(strategy, "a", 2)})
    strategy.join(_info("b", {"representation.c", "heads.spleen.w"}, annotated=["spleen"]))
    state = strategy.configure(2, "b")
    assert state["heads.spleen.w"].tolist() == [0.0, 0.0]
    assert state["representation.c"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        (["conv.w"], {}, "heads.<organ>"),
        (["heads.liver.w"], {"organs": ["spleen"]}, "heads \\['liver'\\], the strategy"),
        (["heads.liver.w", "r.N.norms.liver.w"], {"norm": "per_site"}, "per task"),
        (["heads.liver.w", "r.c"], {"norm": "per_site"}, "matches no key"),
    ],
)
def test_selective__network_that_does_not_fit(state, options, message):
    with pytest.raises(ValueError, match=message):
        SelectiveSync(**options).initialise({key: _value(0) for key in state}, {})


def test_state_dict__round_trip_continues_alike():
    def fresh():
        return _segviz(norm="per_site")

    one, other = fresh(), fresh()
    answers = {"a": _filled(one, "a", 2), "b": _filled(one, "b", 4)}
    _round(one, answers)
    other.load_state_dict(one.state_dict())
    for strategy in (one, other):
        _round(strategy, {"b": _filled(strategy, "b", 9)}, number=2)
    for site in "ab":
        assert digest(one.configure(3, site)) == digest(other.configure(3, site))
    assert digest(one.global_state) == digest(other.global_state)
