"""`medseg support`: from an annotated scan to the prototypes that a one-shot bundle needs."""

from __future__ import annotations


def support(
    bundle: str,
    *,
    image: str,
    label: str,
    out: str,
    weights: str | None = None,
    overlay: str | None = None,
    set: list[str] | None = None,
    device: str = "auto",
) -> int:
    """Write the prototypes of a support scan, which medseg predict takes as --support FILE.

    The prototypes fit the weights that made them, and derive from a patient: keep the file as you
    keep the scan. Several scans give more prototypes an organ.

    Args:
        bundle: Folder or name of a one-shot bundle.
        image: The annotated scan; several with commas between them.
        label: Its label map, on the scan's grid; values 1, 2, ... are the bundle's organs. In the
            same order for several scans.
        out: File to write, such as support_prototypes.pt.
        weights: State dict to use instead of the bundle's models/model.pt.
        overlay: Configuration configs/methods/OVERLAY.yaml of the bundle merged onto its
            inference.yaml.
        set: Values for the bundle's inference.yaml by id, the same that predict gets.
        device: auto, cpu, cuda or cuda:1.

    Returns:
        0.

    Example:
        medseg support abdomen_multimodal_cowpro --image scan.nii.gz --label label.nii.gz
            --out support_prototypes.pt
    """
    import logging

    from medseg_kit.bundle.config import load_config
    from medseg_kit.cli.overrides import overlay_file, parse_overrides
    from medseg_kit.inference.device import select_device
    from medseg_kit.inference.one_shot import OneShotInferer
    from medseg_kit.inference.weights import load_weights
    from medseg_kit.networks.one_shot import OneShotNetwork
    from medseg_kit.networks.support_prototypes import PROTOTYPES_SUFFIX, save_supports
    from medseg_kit.typing import UserError

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if not out.endswith(PROTOTYPES_SUFFIX):
        raise UserError(
            f"--out {out} must end in {PROTOTYPES_SUFFIX}, or predict takes it for a scan"
        )
    chosen = select_device(device)
    overrides = {
        **parse_overrides(set or ()),
        "device": str(chosen),
        **({"checkpoint": weights} if weights else {}),
    }
    files = ["inference.yaml", *([overlay_file(overlay)] if overlay else [])]
    parser = load_config(bundle, files, overrides=overrides)
    if "support" not in parser.get():
        raise UserError(f"{bundle} is no one-shot bundle: its inference.yaml has no id support")
    parser.update({"support": image, "support_label": label})
    network = parser.get_parsed_content("network_def")
    inferer = parser.get_parsed_content("inferer")
    if not (isinstance(network, OneShotNetwork) and isinstance(inferer, OneShotInferer)):
        raise UserError(f"{bundle} is no one-shot bundle: its network is no OneShotNetwork")
    load_weights(network, parser.get_parsed_content("checkpoint"))
    inferer.prepare(network.to(chosen).eval())
    file = save_supports(out, network.supports)
    for prototypes in network.supports:
        print(f"prototypes of {len(prototypes.scans)} {prototypes.modality} scan(s): {file}")
    return 0
