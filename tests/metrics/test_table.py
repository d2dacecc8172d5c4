import csv
import io
import json
import math

import numpy as np
import pytest

from medseg_kit.metrics.table import CaseRecord, score_label_maps, summarise, to_csv

CASE = {"case": "p1", "subject": "p1", "site": "north"}


def example_records():
    reference = np.zeros((6, 6, 6), dtype=np.uint8)
    reference[1:3], reference[4:5] = 1, 2
    pred = np.where(reference == 1, 1, 0)
    return score_label_maps(pred, reference, labels={"liver": (1, 1), "spleen": (2, 2)}, case=CASE)


def test_score_label_maps__one_record_per_label():
    liver, spleen = example_records()
    assert (liver.label, liver.dice, liver.missed) == ("liver", 1.0, False)
    assert (spleen.label, spleen.dice, spleen.missed, spleen.voxels_reference) == (
        "spleen",
        0.0,
        True,
        36,
    )


def test_score_label_maps__values_may_differ():
    reference = np.full((3, 3), 6)
    (record,) = score_label_maps(
        np.ones((3, 3), int), reference, labels={"liver": (1, 6)}, case=CASE
    )
    assert record.dice == 1.0


def test_summarise__counts_what_the_mean_leaves_out():
    rows = summarise([*example_records(), *example_records()], by=("label",))
    spleen = next(row for row in rows if row["label"] == "spleen")
    assert (spleen["n"], spleen["n_missed"], spleen["n_hd_undefined"]) == (2, 2, 2)
    assert spleen["dice_mean"] == 0.0
    assert spleen["hd95_vox_mean"] is None


def test_summarise__mean_and_sd_golden():
    base = example_records()[0].to_dict() | {"hd95_mm": None}
    records = [CaseRecord.from_dict(base | {"dice": dice}) for dice in (0.5, 0.7, 0.9)]
    (row,) = summarise(records, by=("label", "site"))
    assert row["dice_mean"] == pytest.approx(0.7)
    assert row["dice_sd"] == pytest.approx(0.2)
    assert row["site"] == "north"


def test_records__survive_json_without_nan():
    for record in example_records():
        text = json.dumps(record.to_dict(), allow_nan=False)
        assert CaseRecord.from_dict(json.loads(text)).to_dict() == record.to_dict()


def test_to_csv__undefined_is_an_empty_field():
    rows = list(
        csv.DictReader(io.StringIO(to_csv([record.to_dict() for record in example_records()])))
    )
    assert rows[1]["hd95_vox"] == ""
    assert math.isclose(float(rows[0]["dice"]), 1.0)
