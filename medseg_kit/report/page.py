"""One self-contained HTML page of a study or federation: opens offline, needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medseg_kit.files import write_text
from medseg_kit.report import ledger as ledgers
from medseg_kit.report.figures import curve_plot, svg_text
from medseg_kit.typing import PathLike

Row = Mapping[str, Any]
NO_VALUE, MINUS = "\u2013", "\u2212"


def write_page(
    out_html: PathLike,
    *,
    title: str,
    dice_table: Sequence[Row] = (),
    curves: Sequence[Row] = (),
    overlays: Sequence[Row] = (),
    sections: Sequence[Row] = (),
    ledger: Sequence[Row] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write the page and return its path; parts without content are left out.

    Args:
        out_html: File to write.
        title: Headline.
        dice_table: One row per model and structure: `model`, `label`, `dice_mean`, and where known
            `dice_sd`, `dice_low`, `dice_high` (interval), `n`, `n_missed`, `num_seeds`, and
            `highlight: True` for the model that the page is about.
        curves: `panel` (a site), `series`, `points` ([[round, value], ...]); the first one may say
            `xlabel` and `ylabel`.
        overlays: `title`, `caption`, `png` (bytes), for example from `medseg_kit.report.overlays`;
            no real patient of another site belongs on a page that leaves a hospital.
        sections: `title`, `lead` (a sentence) and `svg` (text), `png` (bytes) or `rows`
            (dictionaries with the same keys).
        ledger: Records of ledger.jsonl (types "run", "site", "round", "event").
        notes: Paragraphs of plain text for the end of the page.
    """
    path = Path(out_html)
    environment = Environment(
        loader=PackageLoader("medseg_kit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=_number, signed=_signed, megabytes=_megabytes, cell=_cell_text
    )
    pictures = [{**item, "source": png_source(item["png"])} for item in overlays]
    html = environment.get_template("page.html.j2").render(
        title=title,
        table=dice_matrix(dice_table),
        tiles=tiles(dice_table, ledger),
        curves=Markup(_curve_svg(curves)) if curves else None,
        overlays=pictures,
        sections=[_drawable(item) for item in sections],
        run=next(iter(ledgers.of_type(ledger, "run")), {}),
        sites=ledgers.site_summaries(ledger),
        metric=ledgers.key_metric(ledger),
        worst=ledgers.worst_site(ledger),
        grid=round_grid(ledger),
        records=ledgers.of_type(ledger, "site"),
        events=ledgers.of_type(ledger, "event"),
        notes=notes,
    )
    write_text(path, html)
    return path


def write_federation_page(
    run_dir: PathLike, out_html: PathLike, *, title: str, **parts: Any
) -> Path:
    """Write the page of a federation's run folder: curves and ledger come from its ledger.jsonl.

    Args:
        run_dir: The `--out` folder of `medseg federate`.
        out_html: File to write.
        title: Headline.
        **parts: `dice_table`, `overlays`, `notes`, and `curves` in place of those of the ledger;
        see `write_page`.

    Raises:
        UserError: If the folder holds no readable ledger.
    """
    records = ledgers.read_ledger(run_dir)
    parts.setdefault("curves", ledgers.metric_curves(records))
    return write_page(out_html, title=title, ledger=records, **parts)


def png_source(png: bytes) -> str:
    """Return a PNG as a data address for an `<img>`."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _drawable(item: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": None, "svg": None, "source": None, **item}
    if found["svg"] is not None:
        found["svg"] = Markup(found["svg"])
    elif "png" in item:
        found["source"] = png_source(item["png"])
    return found


def dice_matrix(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return the Dice table as models x structures, with each column's best value marked.

    Args:
        rows: See `write_page`; None comes back when there are none.
    """
    if not rows:
        return None
    labels = list(dict.fromkeys(row["label"] for row in rows))
    models: dict[str, dict[str, Any]] = {}
    for row in rows:
        model = models.setdefault(
            row["model"],
            {"name": row["model"], "cells": {}, "highlight": False, "seeds": row.get("num_seeds")},
        )
        model["cells"][row["label"]] = {"low": None, "high": None, "sd": None, "missed": 0} | _cell(
            row
        )
        model["highlight"] |= bool(row.get("highlight"))
    for model in models.values():
        means = [cell["mean"] for cell in model["cells"].values() if cell["mean"] is not None]
        complete = len(means) == len(labels)
        model["mean"] = sum(means) / len(means) if complete else None
        model["missed"] = sum(cell["missed"] for cell in model["cells"].values())
    best = {
        label: _best(model["cells"].get(label, {}).get("mean") for model in models.values())
        for label in labels
    }
    best_mean = _best(model["mean"] for model in models.values())
    return {
        "labels": labels,
        "models": list(models.values()),
        "best": best,
        "best_mean": best_mean,
        "with_seeds": any(model["seeds"] for model in models.values()),
    }


def tiles(dice_table: Sequence[Row], ledger: Sequence[Row]) -> list[dict[str, str]]:
    """Return the key figures at the top of the page: `value`, `name` and `hint`.

    Args:
        dice_table: See `write_page`.
        ledger: See `write_page`.
    """
    found = []
    table = dice_matrix(dice_table)
    chosen = [model for model in table["models"] if model["highlight"]] if table else []
    if len(chosen) == 1 and chosen[0]["mean"] is not None:
        found.append(
            _tile(_number(chosen[0]["mean"]), "mean Dice", f"{chosen[0]['name']}, unseen patients")
        )
    sites, rounds = ledgers.site_summaries(ledger), ledgers.of_type(ledger, "round")
    if sites:
        samples = sum(site["samples"] or 0 for site in sites)
        found.append(
            _tile(str(len(sites)), "sites", f"{samples} training cases, no image left its site")
        )
    if rounds:
        found.append(
            _tile(
                str(len(rounds)),
                "rounds",
                f"{sum(bool(r['failures']) for r in rounds)} with a failure",
            )
        )
    worst = ledgers.worst_site(ledger)
    if worst is not None:
        found.append(
            _tile(
                _number(worst["gap"]),
                "worst-site gap",
                f"{worst['site']} below the mean of the sites",
            )
        )
    if sites:
        total = sum(site["bytes_sent"] + site["bytes_received"] for site in sites)
        found.append(_tile(_megabytes(total), "exchanged", "weights, both directions"))
    return found


def round_grid(ledger: Sequence[Row]) -> dict[str, Any] | None:
    """Return the ledger as sites x rounds: state, metric and a text for the pointer of each cell.

    Args:
        ledger: See `write_page`; None comes back when it has no site record.
    """
    records = ledgers.of_type(ledger, "site")
    if not records:
        return None
    key = ledgers.key_metric(ledger)
    rounds = sorted({record["round"] for record in records})
    cells: dict[str, dict[int, dict[str, Any]]] = {site: {} for site in ledgers.site_names(ledger)}
    for record in records:
        value = ledgers.site_value(record, key)
        text = f"{record['site']}, round {record['round']}: {record['failure'] or 'ok'}"
        text += "" if value is None else f", {key} {value:.3f}"
        ok = record["status"] == "ok"
        cells[record["site"]][record["round"]] = {"ok": ok, "value": value, "text": text}
    return {"rounds": rounds, "sites": cells}


def _cell(row: Row) -> dict[str, Any]:
    names = {
        "mean": "dice_mean",
        "sd": "dice_sd",
        "low": "dice_low",
        "high": "dice_high",
        "missed": "n_missed",
    }
    found = {name: row[key] for name, key in names.items() if row.get(key) is not None}
    return {"mean": None, **found, "n": row.get("n")}


def _best(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if len(known) > 1 else None


def _tile(value: str, name: str, hint: str) -> dict[str, str]:
    return {"value": value, "name": name, "hint": hint}


def _curve_svg(curves: Sequence[Row]) -> str:
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for curve in curves:
        panels.setdefault(curve["panel"], {})[curve["series"]] = [
            tuple(point) for point in curve["points"]
        ]
    return svg_text(
        curve_plot(
            panels, xlabel=curves[0].get("xlabel", "round"), ylabel=curves[0].get("ylabel", "Dice")
        )
    )


def _number(value: float | None, digits: int = 3) -> str:
    return NO_VALUE if value is None else f"{value:.{digits}f}"


def _cell_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return NO_VALUE if value is None else str(value)


def _signed(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:+.3f}".replace("-", MINUS)


def _megabytes(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value / 1e6:.1f} MB"
