"""`medseg register`: pairwise registration of a data set, and the labels drawn from it."""

from __future__ import annotations


def register(
    data: str,
    *,
    out: str,
    labelled: int | None = None,
    pairs: str = "needed",
    method: str = "affine",
    jobs: int = 1,
    scheduler: str | None = None,
) -> int:
    """Register the training volumes of a prepared data set with each other.

    Writes one transform a pair below OUT/pairs, the best registered label of every unlabelled
    volume below OUT/labelled_N, point maps for training, and OUT/report.json: warped-label Dice
    among the labelled volumes, mutual information, failures. A second run continues. Labels serve
    the report and are warped; they never steer a registration. A data set whose spacing is lost is
    registered with a nominal one.

    Args:
        data: Prepared data set.
        out: Folder for the results.
        labelled: Labelled training patients, the first ones of the list; what the data say if None.
        pairs: needed (labelled with all others, both directions) or all.
        method: affine, rigid_affine, affine_correlation, affine_bspline (elastix), plain or
            plain_bspline (SimpleITK's usual settings).
        jobs: Processes on this machine.
        scheduler: Address of a Dask scheduler, to use its workers instead.

    Returns:
        0, or 1 when pairs failed.

    Example:
        medseg register prepared/acdc --out prepared/acdc_registration --labelled 3 --jobs 2
    """
    from pathlib import Path

    from tqdm import tqdm

    from medseg_kit.files import write_json
    from medseg_kit.registration.cases import ordered_pairs, read_cases
    from medseg_kit.registration.job import register_pairs
    from medseg_kit.registration.maps import write_maps
    from medseg_kit.registration.selection import propagate_labels, warped_label_dice

    found, folder = read_cases(data, labelled=labelled), Path(out)
    training = found.training()
    wanted = ordered_pairs(training, which=pairs)
    with tqdm(total=len(wanted), unit="pair", desc="register") as bar:
        records = register_pairs(
            wanted,
            folder,
            data=found,
            method=method,
            jobs=jobs,
            scheduler=scheduler,
            on_pair=lambda record: bar.update(),
        )
    failed = [record for record in records if not record["success"]]
    write_maps(folder, [(fixed.key, moving.key) for fixed, moving in wanted], data=found)
    rows = warped_label_dice(folder, data=found)
    report = {
        "pairs": len(records),
        "failed": [
            {key: record[key] for key in ("fixed", "moving", "reason")} for record in failed
        ],
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "mean_mutual_information": _mean([r["mutual_information"] for r in records]),
        "mean_warped_label_dice": _mean([row["dice"] for row in rows]),
        "warped_label_dice": rows,
    }
    targets = [case for case in training if not case.labelled]
    if targets:
        number = labelled if labelled is not None else sum(c.labelled for c in training)
        labels = folder / f"labelled_{number}"
        chosen = propagate_labels(folder, labels, data=found, targets=targets)
        without = [row["case"] for row in chosen if row["chosen"] is None]
        report["registered_labels"] = len(chosen) - len(without)
        report["without_registered_label"] = without
        print(f"registered labels: {labels}")
    write_json(folder / "report.json", report)
    dice = report["mean_warped_label_dice"]
    shown = "no two labelled volumes" if dice is None else f"{dice:.3f}"
    print(f"{len(records)} pairs, {len(failed)} failed; warped-label Dice: {shown}")
    for record in failed[:5]:
        print(f"failed: {record['fixed']} <- {record['moving']}: {record['reason']}")
    return 1 if failed else 0


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
