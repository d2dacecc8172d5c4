import pytest

from medseg_kit.report.cost import cost_table
from medseg_kit.report.sections import cost_rows, printed_rows
from medseg_kit.report.settings import label_efficiency, printed_beside, random_starts, sweep_curve
from tests.report.test_comparison import BETTER, WORSE, case, record


def budgeted(method, dice, budget, seed=0):
    return record(f"{method}_{budget}", dice, method=method, seed=seed) | {"label_budget": budget}


STUDY = [
    budgeted("mcsc", BETTER, 7),
    budgeted("mcsc", WORSE, 3),
    budgeted("supervised", WORSE, 7),
    budgeted("supervised", WORSE, 3),
]
PRINTED = [
    {"method": "mcsc", "label_budget": 7, "label": "liver", "dice": 0.894, "source": "table 5.2"},
    {"method": "TransUnet", "label": "liver", "dice": 0.9, "source": "table 3.1"},
]


def test_label_efficiency__a_line_a_method_over_its_budgets():
    axes = label_efficiency(STUDY, printed=PRINTED).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mcsc", "supervised"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["3", "7"]
    assert label_efficiency(STUDY[:1]) is None
    assert label_efficiency([record("a", BETTER)]) is None


def test_sweep_curve__values_from_the_study_file():
    records = [record("b01", WORSE), record("b02", BETTER)]
    figure = sweep_curve(records, {"name": "beta0", "values": {"b01": 0.1, "b02": 0.2}})
    assert figure.axes[0].get_xlabel() == "beta0"
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0.1", "0.2"]
    assert sweep_curve(records, {}) is None
    both = [budgeted("b01", WORSE, 3), budgeted("b01", BETTER, 7)]
    legend = sweep_curve(both, {"name": "beta0", "values": {"b01": 0.1}}).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        "3 labelled patients",
        "7 labelled patients",
    ]


def test_printed_beside__what_nobody_ran_stays_printed_only():
    ours, theirs = printed_beside(STUDY, PRINTED)
    assert ours["dice_mean"] == pytest.approx(sum(BETTER) / 6)
    assert (theirs["model"], theirs["dice_mean"], theirs["printed_dice"]) == (
        "TransUnet",
        None,
        0.9,
    )


def test_random_starts__methods_whose_networks_could_have_been_pretrained():
    def started(method, path):
        network = {"first": {"type": "UNet2D"}, "second": {"pretrained_path": path}}
        return budgeted(method, BETTER, 7) | {"options": {"network": network}}

    records = [started("mcsc", None), started("cps", "given"), *STUDY]
    assert random_starts(records) == ["mcsc"]


def test_printed_beside__a_client_alone_where_the_paper_has_clients():
    north = record("a", BETTER)
    cases = [row | {"site": "south", "dice": 0.25} for row in north["cases"]]
    both = north | {"cases": [row | {"site": "north"} for row in north["cases"]] + cases}
    printed = [
        {"method": "a", "site": site, "label": "liver", "dice": 0.9, "source": "table III"}
        for site in ("north", "south", "elsewhere")
    ]
    rows = printed_beside([both], printed)
    assert [row["dice_mean"] for row in rows] == [pytest.approx(sum(BETTER) / 6), 0.25, None]
    assert [row["site"] for row in printed_rows(rows)] == ["north", "south", "elsewhere"]
    alone = north | {"cases": [row | {"site": "north"} for row in north["cases"]]}
    assert printed_beside([alone], printed)[0]["dice_mean"] == pytest.approx(sum(BETTER) / 6)


def test_mean__over_the_structures_of_a_case():
    both = record("a", BETTER)
    both["cases"] += [case(f"p{i}", "spleen", 0.5) for i in range(6)]
    printed = PRINTED[0] | {"method": "a", "label": "mean", "label_budget": None}
    (row,) = printed_beside([both], [printed])
    assert row["dice_mean"] == pytest.approx((sum(BETTER) / 6 + 0.5) / 2)


def test_cost_table__medians_per_method_and_machine():
    hardware = {"gpu": None, "processor": "CPU", "torch_threads": 2}
    costs = [{"parameters": 10, "seconds_per_step": value} for value in (1.0, 2.0, 9.0)]
    records = [
        record("a", BETTER, seed=s) | {"hardware": hardware, "cost": c} for s, c in enumerate(costs)
    ]
    (row,) = cost_table(records)
    assert (row["runs"], row["parameters"], row["seconds_per_step"]) == (3, 10, 2.0)
    assert row["registration_seconds"] is None


def test_cost_table__printed_costs_come_last_with_their_source():
    hardware = {"gpu": None, "processor": "CPU", "torch_threads": 2}
    ours = record("a", BETTER) | {"hardware": hardware, "cost": {"gflops": 6.0}}
    printed = {"method": "a", "gflops": 3.0, "source": "table 1"}
    rows = cost_table([ours], [printed])
    assert [(row["gflops"], row["runs"]) for row in rows] == [(6.0, 1), (3.0, None)]
    titled = cost_rows(rows)
    assert titled[1]["hardware"] == "printed: table 1"
    assert list(titled[0]) == ["method", "hardware", "runs", "GFLOPs"]
