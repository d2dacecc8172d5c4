"""`medseg study`: run configurations x seeds x label budgets and compare them."""

from __future__ import annotations


def study(runs: str, *, out: str, parallel: int = 1) -> int:
    """Run every configuration of a study file with every seed, and compare them on the test cases.

    Each run is trained (or federated), predicts the test section and is scored; one JSON record a
    run. A study that was stopped continues with the same command: finished runs are not repeated.
    Writes OUT/records.jsonl, OUT/comparison.txt and OUT/runs/.

    Args:
        runs: Study file (YAML); `python -m pydoc medseg_kit.study.spec` lists its entries.
        out: Folder for records, weights and predictions.
        parallel: Runs at the same time; set OMP_NUM_THREADS to the processor cores of each.

    Returns:
        0 when every run is recorded and all spent the stated budget, 1 when the budgets differ.

    Example:
        medseg study scripts/studies/hippocampus_segviz.yaml --out runs/hippocampus
    """
    import logging
    from pathlib import Path

    from medseg_kit.files import write_text
    from medseg_kit.report.comparison import (
        budget_check,
        comparison_table,
        format_comparison,
        paired_tests,
    )
    from medseg_kit.study.runner import run_study
    from medseg_kit.study.spec import load_study

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    plan = load_study(runs)
    records = run_study(
        plan,
        out,
        parallel=parallel,
        on_job=lambda job, state: print(f"{job.name}: {state}", flush=True),
    )
    budget = budget_check(records, local_steps=plan.budget.get("local_steps"))
    tests = paired_tests(records, reference=plan.reference)
    text = format_comparison(comparison_table(records), tests, budget)
    write_text(Path(out) / "comparison.txt", text + "\n")
    print(text)
    print(f"records: {Path(out) / 'records.jsonl'}; figures: medseg report {out} --out DIR")
    return 0 if budget["equal"] else 1
