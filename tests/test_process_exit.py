"""The processes of a script end with their status and with everything done."""

import pytest
from accelerate import Accelerator

from launch import in_processes
from q_hawkeye_trl.process_exit import end_processes


@pytest.mark.parametrize("status", [0, 3])
def test_two_processes_end_with_their_status_and_everything_done(tmp_path, status):
    output, errors = in_processes("ending", tmp_path, status, timeout=120, fails=status != 0)
    if status == 0:  # otherwise the launcher may stop the other process before it is done
        assert output.count("printed before the end") == 2
        marks = [f"rank-{rank}.{kind}" for rank in (0, 1) for kind in ("atexit", "thread")]
        assert sorted(path.name for path in tmp_path.iterdir()) == marks
    else:
        assert f"exitcode: {status})" in errors.replace("exitcode  :", "exitcode:")


def test_a_single_process_continues():
    end_processes(Accelerator(cpu=True), status=5)
