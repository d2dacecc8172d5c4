import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from medseg_kit.cli.report import report
from medseg_kit.report.ledger import metric_curves, read_ledger, site_summaries, worst_site
from medseg_kit.report.page import dice_matrix, write_federation_page, write_page
from medseg_kit.typing import UserError
from tests.report import samples

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    records = samples.ledger()
    return write_page(
        tmp_path_factory.mktemp("page") / "page.html",
        title="Four hospitals & one model",
        dice_table=samples.dice_table(),
        curves=metric_curves(records),
        overlays=samples.overlays(2),
        ledger=records,
        notes=samples.NOTES,
    )


class Tags(HTMLParser):
    """Collects what a page would load, its ids and its open tags."""

    def __init__(self):
        super().__init__()
        self.loads, self.ids, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.loads += [
            (tag, values[key])
            for key in ("src", "href", "xlink:href", "data", "action")
            if key in values
        ]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()


def test_page__loads_nothing_from_outside(page):
    text = page.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert all(value.startswith(("data:image/png;base64,", "#")) for _, value in tags.loads)
    assert not re.search(r"@import|url\((?!#)|<script|<link|<iframe", text)
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_page__has_all_parts(page):
    text = page.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert {"key-figures", "dice", "curves", "overlays", "sites", "ledger", "notes"} <= set(
        tags.ids
    )
    for word in (
        "Four hospitals &amp; one model",
        "Single-site models",
        "0.930",
        "3 of 12 missed",
        "worst-site gap",
    ):
        assert word in text
    assert "key encoder.weight has NaN" in text
    assert text.count("<img ") == 2
    assert samples.NOTES[0] in text


def test_page__text_from_sites_is_escaped(tmp_path):
    records = samples.ledger(2)
    records[2]["failure"] = "<script>alert(1)</script>"
    path = write_page(tmp_path / "page.html", title="<b>", ledger=records)
    assert "<script" not in path.read_text(encoding="utf-8")
    assert "&lt;script&gt;" in path.read_text(encoding="utf-8")


def test_page__parts_without_content_are_left_out(tmp_path):
    text = write_page(tmp_path / "page.html", title="Empty").read_text(encoding="utf-8")
    assert "Round ledger" not in text
    assert "How well" not in text


def test_dice_matrix__best_value_and_missing_structure():
    rows = samples.dice_table()[:-1]
    table = dice_matrix(rows)
    assert table["best"]["pancreas"] == 0.55
    assert table["models"][-1]["mean"] is None
    assert table["models"][2]["missed"] == 3


def test_ledger__site_summaries_and_worst_site():
    records = samples.ledger()
    rows = {row["site"]: row for row in site_summaries(records)}
    assert (rows["site-pancreas"]["rounds_ok"], rows["site-pancreas"]["rounds_failed"]) == (11, 1)
    assert rows["site-spleen"]["bytes_sent"] == 42_000_000
    assert rows["site-kidneys"]["gain"] == pytest.approx(-0.02)
    worst = worst_site(records)
    assert (worst["site"], worst["round"]) == ("site-spleen", 12)


def test_write_federation_page__from_a_run_folder(tmp_path):
    lines = "".join(json.dumps(record) + "\n" for record in samples.ledger(3))
    (tmp_path / "ledger.jsonl").write_text(lines)
    text = write_federation_page(tmp_path, tmp_path / "page.html", title="Federation").read_text(
        encoding="utf-8"
    )
    assert "Learning, round by round" in text
    assert report(str(tmp_path), out=str(tmp_path / "report")) == 0
    assert (tmp_path / "report" / "federation.html").is_file()


def test_read_ledger__damaged_or_missing(tmp_path):
    with pytest.raises(UserError, match=r"ledger\.jsonl does not exist"):
        read_ledger(tmp_path)
    (tmp_path / "ledger.jsonl").write_text('{"type": "run"}\n{"ty')
    with pytest.raises(UserError, match="line 2"):
        read_ledger(tmp_path)
    with pytest.raises(UserError, match=r"neither records\.jsonl"):
        report(str(tmp_path / "nothing"), out=str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to open the page")
def test_page__opens_in_a_browser(page, tmp_path):
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --window-size=1200,3000"
    )
    words = [CHROMIUM, *options.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    shot = tmp_path / "page.png"
    subprocess.run(
        [*words, f"--screenshot={shot}", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=180,
    )
    assert shot.stat().st_size > 50_000
    tree = subprocess.run(
        [*words, "--dump-dom", page.as_uri()],
        check=True,
        capture_output=True,
        encoding="utf-8",
        timeout=180,
    )
    assert "Four hospitals &amp; one model" in tree.stdout
    assert tree.stdout.count("<path") > 10
