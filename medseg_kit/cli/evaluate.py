"""`medseg evaluate`: score predictions against reference labels."""

from __future__ import annotations


def evaluate(
    *,
    pred: str,
    reference: str,
    out: str,
    organs: list[str] | None = None,
    policy: str = "strict",
    site: str | None = None,
    section: str = "test",
) -> int:
    """Score predicted label maps: Dice, HD and HD95 per case, label and site, on the native grid.

    Writes cases.csv, summary.csv, summary.json and box plots (SVG and PNG) into OUT. Labels that a
    reference never annotated are left out; a missed structure counts as Dice 0 and is counted
    beside every mean. Structures are matched by name where the record `<case>.json` beside a
    prediction names its labels, else by value.

    Args:
        pred: Folder with predictions named `<case>.nii.gz`, as `medseg predict` writes them.
        reference: Prepared data set folder, datalist (JSON), or folder of label files.
        out: Folder for the tables and figures.
        organs: Comma-separated. With a datalist: the organs to score. With a folder of label files:
            the names of the label values 1, 2, ...
        policy: `strict` (a missed structure has no distance), or `reference` (parity with published
            code).
        site: Score the cases of this site only.
        section: Section of the datalist.

    Returns:
        0 when every case was scored, 1 when some have no prediction, or one that cannot be
        compared; they are named, and the others are scored.

    Example:
        medseg evaluate --pred predictions --reference data/hippocampus --out evaluation
    """
    import sys

    from medseg_kit.metrics.policy import EMPTY_MASK_SCORES
    from medseg_kit.report.evaluation import format_summary, write_evaluation
    from medseg_kit.study.evaluation import in_short, predicted, score_predictions
    from medseg_kit.study.references import find_references
    from medseg_kit.typing import UserError

    if policy not in EMPTY_MASK_SCORES:
        raise UserError(f"unknown --policy {policy!r}; choose one of {list(EMPTY_MASK_SCORES)}")
    references = find_references(reference, section=section, organs=organs, site=site)
    present, missing = predicted(pred, references)
    records, problems = score_predictions(pred, present, policy=policy)
    if not records:
        raise UserError(in_short(problems))
    summary = write_evaluation(
        out, records, policy=policy, not_predicted=missing, not_scored=problems
    )
    print(format_summary(summary))
    print(f"tables and figures: {out}")
    for case in missing:
        print(f"error: {pred} has no prediction for {case}; it is in no mean", file=sys.stderr)
    for case, problem in problems.items():
        print(f"error: {case} is in no mean: {problem}", file=sys.stderr)
    return 1 if missing or problems else 0
