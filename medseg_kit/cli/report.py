"""`medseg report`: tables, figures and a page from a study's or a federation's records."""

from __future__ import annotations


def report(study: str, *, out: str, title: str | None = None, study_file: str | None = None) -> int:
    """Make tables, figures and one self-contained page from records alone.

    STUDY is the --out folder of `medseg study` (writes report.html, and beside it its tables as
    CSV, box plots, curves over label budgets and while training, cost, and, where images,
    predictions and weights still are there, case grids, overlap pictures and feature maps), or that
    of `medseg federate simulate` (writes federation.html: curves per site and round, and the round
    ledger).

    Args:
        study: Folder with records.jsonl or ledger.jsonl.
        out: Folder for the report.
        title: Headline of a federation's page.
        study_file: The study's YAML file, for records that came without the study.json beside them.

    Returns:
        0 when the report is written.

    Example:
        medseg report runs/hippocampus --out report
    """
    from pathlib import Path

    from medseg_kit.typing import UserError

    source, folder = Path(study), Path(out)
    if (source / "records.jsonl").is_file():
        from dataclasses import asdict

        from medseg_kit.report.study import write_study_report
        from medseg_kit.study.spec import load_study

        settings = None if study_file is None else asdict(load_study(study_file))
        write_study_report(source, folder, settings=settings)
        print(f"page: {folder / 'report.html'}")
        return 0
    if (source / "ledger.jsonl").is_file():
        from medseg_kit.report.page import write_federation_page

        path = write_federation_page(
            source, folder / "federation.html", title=title or "Federation"
        )
        print(f"page: {path}")
        return 0
    raise UserError(
        f"{source} holds neither records.jsonl (medseg study) nor ledger.jsonl "
        "(medseg federate); give such a folder"
    )
