"""``medseg bundle``: verify a bundle offline, pack its weights, write the skeleton of a new one."""

from __future__ import annotations


def verify(bundle: str) -> int:
    """Check a bundle as the Model Zoo and MONAI Label would, without a network.

    Files and licences, metadata against the schema, every configuration and overlay, MONAI's
    properties, the network's input and output, and the weights.

    Example:
        medseg bundle verify hippocampus_mr_segviz

    Args:
        bundle: Name or path of the bundle.

    Returns:
        0 when nothing is wrong, else 1.
    """
    from medseg_kit.bundle.verify import verify_bundle

    results = verify_bundle(bundle)
    for check, problems in results.items():
        print(f"{'ok    ' if not problems else 'WRONG '} {check}")
        for problem in problems:
            print(f"         {problem}")
    wrong = sum(len(problems) for problems in results.values())
    print(f"{bundle}: {f'{wrong} problems' if wrong else 'no problem found'}")
    return 1 if wrong else 0


def new(
    name: str,
    *,
    organs: list[str],
    like: str = "hippocampus_mr_segviz",
    out: str = "bundles",
) -> None:
    """Write a bundle that composes, verifies and trains, to be edited from there.

    Example:
        medseg bundle new prostate_mr_segviz --organs peripheral,transition

    Args:
        name: Folder name, ``<anatomy>_<modality>_<method>`` in lower case.
        organs: Organs in label order, separated by commas; label value i + 1 is the i-th one.
        like: Bundle whose configurations to start from.
        out: Folder that holds the bundles.
    """
    from medseg_kit.bundle.new import write_bundle

    root = write_bundle(name, organs, like=like, folder=out)
    print(f"{root}: written, without weights. Next:")
    print(f"  medseg bundle verify {root}")
    print(
        f"  python -m monai.bundle run --config_file {root}/configs/train.yaml --dataset_dir DATA"
        " --output_dir RUN"
    )
    print(f"  medseg bundle pack {root} --weights RUN/model.pt")


def pack(bundle: str, *, weights: str) -> None:
    """Make trained weights those of a bundle: checked against its network, in half precision.

    Example:
        medseg bundle pack hippocampus_mr_segviz --weights runs/federation/global/model.pt

    Args:
        bundle: Name or path of the bundle.
        weights: Trained weights of the network that the bundle's inference.yaml deploys.
    """
    from medseg_kit.bundle.pack import pack_weights

    path = pack_weights(bundle, weights)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
