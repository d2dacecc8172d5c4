import re
import xml.etree.ElementTree as ET

import pytest

from medseg_kit.report.box_plots import box_plot
from medseg_kit.report.figures import (
    curve_plot,
    save_figure,
    series_color,
    series_hatch,
    series_marker,
    significance_mark,
    svg_text,
)

VALUES = {
    "liver": {"a": [0.9, 0.8, float("nan")], "b": [0.7]},
    "spleen": {"a": [], "b": [0.1, 0.2]},
}


def test_box_plot__names_clusters_series_and_marks():
    text = svg_text(box_plot(VALUES, ylabel="Dice", marks={"liver": [("a", "b", "**")]}))
    for word in ("liver", "spleen", ">a<", ">b<", r"\*\*", "Dice"):
        assert re.search(word, text)


def test_svg_text__is_one_element_without_external_reference():
    text = svg_text(
        curve_plot(
            {"site": {"x": [(1, 0.1), (2, 0.2)], "level": [(2, 0.3)]}},
            xlabel="round",
            ylabel="Dice",
        )
    )
    assert ET.fromstring(text).tag.endswith("svg")
    assert "metadata" not in text
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_series__look_different_also_beyond_the_colours():
    indices = range(32)
    assert len({(series_color(index), series_marker(index)) for index in indices}) == 32
    assert len({(series_color(index), series_hatch(index)) for index in indices}) == 32


def test_svg_text__same_figure_same_text():
    assert svg_text(box_plot(VALUES, ylabel="Dice")) == svg_text(box_plot(VALUES, ylabel="Dice"))


def test_save_figure__writes_both_formats(tmp_path):
    svg, png = save_figure(box_plot(VALUES, ylabel="Dice"), tmp_path / "deep" / "dice")
    assert svg.read_text(encoding="utf-8").startswith("<svg")
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("p_value", "mark"),
    [(None, ""), (0.2, "n.s."), (0.05, "n.s."), (0.049, "*"), (0.009, "**"), (0.0009, "***")],
)
def test_significance_mark__limits(p_value, mark):
    assert significance_mark(p_value) == mark
