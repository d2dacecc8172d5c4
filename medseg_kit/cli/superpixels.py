"""`medseg superpixels`: the pseudo-labels of one-shot training, beforehand and in parallel."""

from __future__ import annotations


def superpixels(
    bundle: str,
    *,
    data: str,
    overlay: str | None = None,
    set: list[str] | None = None,
    jobs: int = -1,
    pictures: str | None = None,
) -> int:
    """Cut every slice of a data set's training scans into superpixels inside the body.

    Files go to DATA/superpixels/<digest of the settings>; training reads them, and makes what is
    missing itself, one by one. The same command continues: finished scans are not repeated.

    Args:
        bundle: Folder or name of a one-shot bundle; its train.yaml says how.
        data: Prepared data set, or the data set of one site.
        overlay: Configuration configs/methods/OVERLAY.yaml of the bundle merged onto it.
        set: Values for the bundle's train.yaml by id, the same that training gets, e.g.
            `--set mr_body=otsu`. Those of a site's own site.yaml are read.
        jobs: Processes; -1 for one a core.
        pictures: Folder for one picture a scan: slices with the borders of their superpixels.

    Returns:
        0.

    Example:
        medseg superpixels abdomen_multimodal_cowpro --data prepared/one_shot/sites/client-ct
            --jobs 2
    """
    from pathlib import Path

    from tqdm import tqdm

    from medseg_kit.bundle.config import load_config
    from medseg_kit.cli.overrides import overlay_file, parse_overrides
    from medseg_kit.data.episodes import SuperpixelSlices
    from medseg_kit.fl.site import read_site_file
    from medseg_kit.report.superpixels import write_pictures
    from medseg_kit.typing import UserError

    files = ["train.yaml", *([overlay_file(overlay)] if overlay else [])]
    own = {**read_site_file(Path(data)), **parse_overrides(set or ())}
    parser = load_config(bundle, files, overrides={**own, "dataset_dir": data})
    dataset = parser.get_parsed_content("train#dataset")
    if not isinstance(dataset, SuperpixelSlices):
        raise UserError(f"{bundle} is no one-shot bundle: it does not train on superpixels")
    missing = len(dataset.files.missing(dataset.cases))
    with tqdm(total=missing, unit="scan", desc="superpixels", disable=not missing) as bar:
        made = dataset.files.make(dataset.cases, jobs=jobs, on_case=bar.update)
    print(f"{made} scans cut up, {len(dataset.cases) - made} were there: {dataset.files.folder}")
    if pictures is not None:
        distortion = parser.get_parsed_content("train#augmentation")
        write_pictures(dataset, distortion, Path(pictures))
        print(f"pictures: {pictures}")
    return 0
