"""`medseg demo`: train, compare and apply a federation, from nothing to a page in minutes."""

from __future__ import annotations


def demo(*, out: str = "out/demo", data: str = "phantoms", seed: int = 0) -> int:
    """Show the whole path: partly labelled sites, a federation, its rivals, segmentations, a page.

    Trains SegViz's federation on sites that label one organ each, compares it on outside patients
    with single-site models, conventional federated averaging and pooled training, and segments the
    outside patients with the global model. Writes OUT/report.html (opens offline), dice.csv,
    dice.md, segmentations/ (NIfTI), evaluation/ and models/.

    Args:
        out: Folder for everything; an earlier demo in it is replaced.
        data: `phantoms` (synthetic patients), or `hippocampus` (the Task04 volumes in the folder
            that the environment variable MEDSEG_DATA names).
        seed: Seed of everything random.

    Returns:
        0 when everything was written.

    Example:
        medseg demo --out out/demo
    """
    from medseg_kit.typing import UserError

    choices = ("phantoms", "hippocampus")
    if data not in choices:
        raise UserError(f"unknown --data {data!r}; choose one of {', '.join(choices)}")
    print("Loading ...", flush=True)

    import time

    from medseg_kit.study.demo.data import real_data_folder
    from medseg_kit.study.demo.run import SEGMENTATIONS, Demo
    from medseg_kit.study.demo.settings import SETTINGS

    start = time.perf_counter()
    source = real_data_folder() if data == "hippocampus" else None
    page = Demo(
        out,
        settings=SETTINGS[data],
        source=source,
        seed=seed,
        progress=True,
        say=lambda line: print(line, flush=True),
    ).run()
    print(f"\nDone in {time.perf_counter() - start:.0f} s. Everything is in {page.parent}")
    print(f"  table: dice.md, dice.csv; segmentations: {SEGMENTATIONS}/; open the page: {page}")
    return 0
