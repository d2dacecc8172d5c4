"""A run of a study without training: copies the reference labels, moved by a few voxels.

Usage: fake_run.py PREDICTIONS DATASET SHIFT [WAIT_FILE]; notes each start in
PREDICTIONS/../starts.txt and waits as long as WAIT_FILE exists.
"""

import json
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np


def main(predictions, dataset, shift, wait_file=None):
    folder = Path(dataset)
    with (Path(predictions).parent / "starts.txt").open("a") as file:
        file.write("start\n")
    while wait_file is not None and Path(wait_file).exists():
        time.sleep(0.02)
    for case in json.loads((folder / "datalist.json").read_text())["test"]:
        label = nib.load(folder / case["label"])
        array = np.roll(np.asanyarray(label.dataobj), int(shift), axis=0)
        nib.save(nib.Nifti1Image(array, label.affine), Path(predictions) / Path(case["image"]).name)


if __name__ == "__main__":
    main(*sys.argv[1:])
