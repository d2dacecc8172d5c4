"""`medseg register`: pairwise registration of a data set, and the labels drawn from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def register(  # noqa: PLR0913 - the options of a command, all by name
    data: str,
    *,
    out: str,
    labelled: list[int] | None = None,
    pairs: str = "needed",
    method: str = "rigid_affine",
    region: str | None = None,
    spline_spacing: float | None = None,
    per_case: bool = False,
    choice: str = "best",
    score_weights: list[float] | None = None,
    nominal_spacing: list[float] | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
) -> int:
    """Register the training volumes of a prepared data set with each other.

    Writes one transform a pair below OUT/pairs, the best registered label of every unlabelled
    volume below OUT/labelled_N, point maps for training (OUT/maps.pt), and OUT/report.json and
    report.txt: Dice of warped labels among the labelled volumes, mutual information, round trips,
    failures. The same command continues: finished pairs are not repeated. Labels serve the report
    and are warped; they never steer a registration.

    Args:
        data: Prepared data set.
        out: Folder for the results.
        labelled: Labelled training patients, the first N of the list; several numbers (1,3,7) make
            registered labels for each. What the data say if not given.
        pairs: needed (labelled with all others, both directions) or all.
        method: rigid_affine, affine, affine_bspline, rigid_affine_bspline (elastix, normalised
            correlation), affine_information (elastix, mutual information), plain or plain_bspline
            (SimpleITK's usual settings, as in the thesis).
        region: What is registered: centre (the middle half in plane; MR's default), body (what is
            not air; CT's default) or full (the plain methods' default).
        spline_spacing: Distance of a B-spline's control points in mm; 20 (MR) or 24 (CT).
        per_case: Register the first frame of each patient and use its transforms for the others.
        choice: best (the labelled volume with the best round trip lends its label) or random (any
            registered one; an ablation, written below OUT/labelled_N_random).
        score_weights: Of a round trip's RMSE and mutual information in its score; 1,-1 by default.
        nominal_spacing: X,Y,Z in mm along the stored axes, for data that have lost their spacing
            and are no cine cardiac MR (which is taken as 1.5,1.5,10, or 5 above 12 slices).
        jobs: Processes on this machine; -1 for one a core.
        scheduler: Address of a Dask scheduler whose workers do the work instead; they need this
            package and see the same folders.

    Returns:
        0, or 1 when pairs failed.

    Example:
        medseg register prepared/acdc --out prepared/acdc_registration --labelled 3 --jobs 2
    """
    from dataclasses import asdict
    from pathlib import Path

    from medseg_kit.files import write_json, write_text
    from medseg_kit.registration.cases import ordered_pairs, read_cases
    from medseg_kit.registration.layout import labelled_folder
    from medseg_kit.registration.maps import write_maps
    from medseg_kit.registration.quality import compare_labels, format_report, summarise
    from medseg_kit.registration.selection import Rule
    from medseg_kit.registration.settings import make_settings
    from medseg_kit.registration.store import PairStore
    from medseg_kit.typing import UserError

    weights = [1.0, -1.0] if score_weights is None else score_weights
    if len(weights) != 2:
        raise UserError(f"score_weights is {weights}; give two numbers, for example 1,-1")
    rule = Rule(choice, *weights)
    budgets: list[int | None] = [*sorted(set(labelled))] if labelled else [None]
    options: Any = {"per_case": per_case, "nominal_spacing": nominal_spacing}
    found = read_cases(data, labelled=budgets[-1], **options)
    settings = make_settings(
        method, modality=found.modality, region=region, spline_spacing=spline_spacing
    )
    store = PairStore(Path(out).absolute(), found.modality, settings)
    where: Any = {"jobs": jobs, "scheduler": scheduler}
    records = _register(store, ordered_pairs(found.section(), which=pairs), **where)
    write_maps(store, found.section())
    rows = compare_labels(store, found.candidates(), **where)
    report: dict[str, Any] = {
        "data": str(data),
        "method": method,
        "region": settings.region,
        "spline_spacing": settings.spline_spacing,
        "nominal_spacing": nominal_spacing,
        "per_case": per_case,
        "which_pairs": pairs,
        "budgets": budgets,
        "selection": asdict(rule),
        "pairs": _summary(records),
        "labelled": {"pairs": len(rows), "mean": summarise(rows), "rows": rows},
        "registered_labels": {},
    }
    for budget in budgets:
        labels = read_cases(data, labelled=budget, **options)
        number = len({case.subject for case in labels.candidates()}) if budget is None else budget
        targets = [case for case in labels.section() if not case.labelled]
        if targets:
            folder = labelled_folder(store.folder, number, choice)
            chosen = _propagate(
                store,
                folder,
                targets,
                labels.candidates(),
                rule=rule,
                **where,
            )
            report["registered_labels"][folder.name.removeprefix("labelled_")] = chosen
    write_json(store.folder / "report.json", report)
    text = format_report(report)
    write_text(store.folder / "report.txt", text + "\n")
    print(text)
    return 1 if report["pairs"]["failed"] else 0


def segment(  # noqa: PLR0913 - the options of a command, all by name
    data: str,
    *,
    out: str,
    registration: str,
    test: str | None = None,
    section: str = "test",
    labelled: int | None = None,
    method: str = "rigid_affine",
    region: str | None = None,
    spline_spacing: float | None = None,
    nominal_spacing: list[float] | None = None,
    empty: bool = False,
    jobs: int = 1,
    scheduler: str | None = None,
) -> int:
    """Segment volumes by registration alone: warp the best labelled training label to each.

    The baseline without a network. Writes OUT/<case>.nii.gz as `medseg evaluate` reads them.

    Args:
        data: Prepared data set with the labelled training volumes.
        out: Folder for the predictions.
        registration: Folder for the transforms; a second run continues there.
        test: Prepared data set of the volumes to segment; DATA itself if not given.
        section: Section of it.
        labelled: Labelled training patients, the first ones of the list; what the data say if not
            given.
        method: As `medseg register`.
        region: As `medseg register`.
        spline_spacing: As `medseg register`.
        nominal_spacing: As `medseg register`.
        empty: Write an empty label map for a volume that no labelled one could be registered with,
            so that it counts as missed in the scores. Without it no file is written.
        jobs: As `medseg register`.
        scheduler: As `medseg register`.

    Returns:
        0, or 1 when a volume has no label map.

    Example:
        medseg register segment prepared/acdc --out pred --registration reg --labelled 3
    """
    from pathlib import Path

    from medseg_kit.inference.cases import find_cases
    from medseg_kit.registration.cases import read_cases
    from medseg_kit.registration.propagate import write_empty_label
    from medseg_kit.registration.settings import make_settings
    from medseg_kit.registration.store import PairStore
    from medseg_kit.typing import UserError

    source = Path(data if test is None else test).absolute()
    training = read_cases(data, labelled=labelled, nominal_spacing=nominal_spacing)
    wanted = read_cases(source, nominal_spacing=nominal_spacing)
    if training.modality != wanted.modality:
        raise UserError(
            f"{data} is {training.modality}, {source} is {wanted.modality}: intensities of two"
            " modalities are not comparable here; take labelled volumes of the same modality"
        )
    targets, candidates = wanted.section(section), training.candidates()
    if not targets:
        raise UserError(f"{source} has no {section} cases")
    settings = make_settings(
        method, modality=wanted.modality, region=region, spline_spacing=spline_spacing
    )
    store = PairStore(Path(registration).absolute(), wanted.modality, settings)
    names = {str(case.image): case.name for case in find_cases(source, section=section)}
    files = {case.key: names[str(case.image)] for case in targets}
    pairs = [(one, other) for one in targets for other in candidates if one.matches(other)]
    where: Any = {"jobs": jobs, "scheduler": scheduler}
    _register(store, [*pairs, *((moving, fixed) for fixed, moving in pairs)], **where)
    chosen = _propagate(store, Path(out).absolute(), targets, candidates, files=files, **where)
    print(f"{chosen['number']} of {len(targets)} volumes segmented: {out}")
    cases = {case.key: case for case in targets}
    for row in chosen["without"]:
        print(f"not segmented: {row['case']}: {row['reason']}")
        file = Path(out).absolute() / f"{files[row['case']]}.nii.gz"
        if empty:
            write_empty_label(cases[row["case"]], file)
        else:
            file.unlink(missing_ok=True)  # of an earlier run with --empty
    return 1 if chosen["without"] and not empty else 0


def _register(store: Any, pairs: Sequence[Any], **where: Any) -> list[dict[str, Any]]:
    from medseg_kit.registration.job import register_pairs

    with _progress(len(pairs), "pair", "register") as bar:
        return register_pairs(pairs, store, on_pair=_advance(bar), **where)


def _propagate(
    store: Any,
    folder: Path,
    targets: Sequence[Any],
    candidates: Sequence[Any],
    *,
    files: dict[str, str] | None = None,
    **where: Any,
) -> dict[str, Any]:
    from medseg_kit.registration.propagate import propagate_labels

    with _progress(len(targets), "volume", folder.name) as bar:
        rows = propagate_labels(
            store,
            folder,
            targets=targets,
            candidates=candidates,
            names=files,
            on_case=_advance(bar),
            **where,
        )
    without = [{key: row[key] for key in ("case", "reason")} for row in rows if not row["chosen"]]
    return {"number": len(rows) - len(without), "without": without}


def _progress(total: int, unit: str, title: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, desc=title)


def _advance(bar: Any) -> Callable[[Any], None]:
    return lambda _result: bar.update()


def _summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from statistics import fmean, median

    done = [record for record in records if record["success"]]
    values = [value for record in done for value in record["metric"].values()]
    names = ("fixed", "moving", "reason")
    return {
        "number": len(records),
        "failed": [{n: r[n] for n in names} for r in records if not r["success"]],
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "median_seconds": median(r["seconds"] for r in done) if done else None,
        "mutual_information": fmean(values) if values else None,
    }
