"""`medseg predict`: segment a folder, a datalist or a glob with a bundle."""

from __future__ import annotations


def predict(  # noqa: PLR0913 - each argument is an option of the command line
    bundle: str,
    *,
    input: str,
    output: str,
    weights: str | None = None,
    overlay: str | None = None,
    set: list[str] | None = None,
    support: str | None = None,
    support_label: str | None = None,
    device: str = "auto",
    fast: bool = False,
    section: str | None = None,
    save_probabilities: bool = False,
    overwrite: bool = False,
    num_parts: int = 1,
    part_id: int = 0,
    progress: bool = True,
) -> int:
    """Segment every image of INPUT and write label maps on the images' own grids into OUTPUT.

    Reads NIfTI, NRRD, MHA/MHD and DICOM series. Writes <case>.nii.gz and <case>.json (status,
    seconds, volumes in ml, warnings) for each, and summary.json. Finished cases are skipped when
    input, weights and options are unchanged. A case that cannot be read costs only itself. Under
    torchrun the cases are shared among the processes, one GPU each.

    Args:
        bundle: Folder or name of the bundle.
        input: Folder (searched with its sub-folders), prepared data set, datalist, image, or glob.
        output: Folder for the results.
        weights: State dict to use instead of the bundle's models/model.pt.
        overlay: Configuration configs/methods/OVERLAY.yaml of the bundle merged onto its
            inference.yaml, e.g. plain_network for the weights of conventional averaging.
        set: Values for the bundle's inference.yaml by id, e.g. `--set network_def::answer=[liver]`.
        support: For a one-shot bundle: the annotated scan, several with commas between them, or the
            file of prototypes that medseg support wrote (.pt).
        support_label: Label of the support scan, in the same order for several.
        device: auto, cpu, cuda or cuda:1.
        fast: bfloat16 where the device has it, and only the body: quicker, labels differ slightly.
        section: Section of a datalist (training, validation, test); all of them if not given.
        save_probabilities: Also write each class's probability.
        overwrite: Predict again also what is finished.
        num_parts: Number of jobs or machines that share the work.
        part_id: Which of them this is, from 0.
        progress: Show a progress bar.

    Returns:
        0 when every case succeeded.

    Example:
        medseg predict abdomen_ct_segviz -i studies -o segmentations --device auto
    """
    import logging
    from pathlib import Path

    from medseg_kit.bundle.config import load_config
    from medseg_kit.bundle.record import warn_of_differences
    from medseg_kit.cli.overrides import overlay_file, parse_overrides
    from medseg_kit.inference.device import select_device
    from medseg_kit.inference.weights import check_weights_exist
    from medseg_kit.typing import UserError

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = {
        "section": section,
        "save_probabilities": save_probabilities,
        "overwrite": overwrite,
        "num_parts": num_parts,
        "part_id": part_id,
        "progress": progress,
    }
    overrides = {
        **parse_overrides(set or ()),
        "dataset_dir": input,
        "output_dir": output,
        "device": str(select_device(device)),
        **({"fast": True} if fast else {}),
        **({"checkpoint": weights} if weights else {}),
        **({"support": support} if support else {}),
        **({"support_label": support_label} if support_label else {}),
        **{f"predictor#options#{key}": value for key, value in options.items()},
    }
    files = ["inference.yaml"]
    if overlay:
        files.append(overlay_file(overlay))
    if (support or support_label) and "support" not in load_config(bundle, files):
        raise UserError(f"{bundle} is no one-shot bundle: it takes no --support")
    parser = load_config(bundle, files, overrides=overrides)
    checkpoint = parser.get_parsed_content("checkpoint")
    if checkpoint is not None:  # an overlay may need none
        check_weights_exist(checkpoint)
        warn_of_differences(checkpoint, parser)
    parser.get_parsed_content("run")
    print(f"results and summary: {Path(output) / 'summary.json'}")
    return 0
