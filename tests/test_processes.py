import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from q_hawkeye_trl.process_exit import end_processes


@pytest.mark.parametrize("status", [0, 3])
def test_two_processes_end_with_their_status_and_everything_done(tmp_path, status):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    command += [str(Path(__file__).with_name("two_processes_ending.py")), str(tmp_path), str(status)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert (done.returncode == 0) == (status == 0), done.stderr[-3000:]
    if status == 0:  # otherwise the launcher may stop the other process on its way
        assert done.stdout.count("printed before the end") == 2
        marks = [f"rank-{rank}.{kind}" for rank in (0, 1) for kind in ("atexit", "thread")]
        assert sorted(path.name for path in tmp_path.iterdir()) == marks
    else:
        assert f"exitcode: {status})" in done.stderr.replace("exitcode  :", "exitcode:")


def test_a_single_process_goes_on():
    end_processes(Accelerator(cpu=True), status=5)
