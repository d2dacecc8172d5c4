"""Which runs of a study are shown as pictures."""

from medseg_kit.report.pictures import shown_records


def test_shown_records__all_labels_are_more_than_any_number():
    records = [
        {"label_budget": budget, "seed": seed} for seed in (1337, 1338) for budget in (7, None)
    ]
    assert shown_records(records) == [{"label_budget": None, "seed": 1337}]
    assert shown_records([]) == []
