"""A process group as torchrun starts it, here of one process."""

import os
import subprocess
import sys

import pytest

JOIN = """
import os
from medseg_kit.engines.distributed import Distributed
group = Distributed()
print(group.rank, group.device, os.environ["LOCAL_RANK"])
group.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("slurm", [{}, {"SLURM_JOB_ID": "7", "SLURM_LOCALID": "3"}])
def test_distributed__keeps_the_local_rank_of_torchrun_inside_a_slurm_job(slurm):
    launched = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    environment = os.environ | launched | slurm | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", JOIN],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stdout.split() == ["0", "cpu", "0"], done.stderr
