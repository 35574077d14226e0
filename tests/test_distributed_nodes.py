"""A dry run of several nodes: two launchers of one process each, which find one another on the loopback."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launch import TESTS, TORCHRUN, finish, kill, start
from q_hawkeye_trl.demo.synthetic import write_synthetic_koniq

pytestmark = pytest.mark.slow
TRAINING = {
    "per_device_train_batch_size": 8,
    "num_generations": 8,
    "max_steps": 2,
    "held_out_batch_size": 4,
    "validation_passes": 2,
    "use_cpu": "true",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "koniq"
    return write_synthetic_koniq(root, train=8, validation=4, test=4, progress=False)


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def wait_for_port(node: subprocess.Popen, port: str, seconds: float = 120) -> None:
    """Waits until the first node's rendezvous listens: accelerate refuses to start it where another one does."""
    until = time.monotonic() + seconds
    while node.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", int(port))).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    kill(node)
    raise AssertionError(f"nothing listens at port {port}:\n{node.communicate()[1][-3000:]}")


def on_two_nodes(folder: Path, data: Path, port: str, launchers: list[list[str]]) -> list[dict]:
    """Starts the launchers, the second one when the first one listens; what the two ranks wrote down."""
    arguments = [
        str(TESTS / "worker.py"),
        "script",
        str(folder),
        "--data_dir",
        str(data),
        "--output_dir",
        f"{folder}/run",
    ]
    arguments += [word for name, value in TRAINING.items() for word in (f"--{name}", str(value))]
    nodes = []
    try:
        for launcher in launchers:
            nodes.append(start([*launcher, *arguments], cwd=folder))
            wait_for_port(nodes[0], port)
        outputs = [finish(node, timeout=240)[0] for node in nodes]
    finally:
        for node in nodes:
            kill(node)
    assert sum(" held-out images " in output for output in outputs) == 1  # one rank reports
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def assert_one_run(folder: Path, ranks: list[dict], wrapper: str) -> None:
    for seen in ranks:
        # each node has its own first process, and both are one world
        assert seen == {"world_size": 2, "local_rank": 0, "wrapper": wrapper, "steps": 2}
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["held_out_images"] == 4
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert (folder / "run" / "model.safetensors").is_file()


def test_torchrun_with_a_rendezvous(tmp_path, data):
    port = free_port()
    launcher = [*TORCHRUN, "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_id", tmp_path.name]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}"]
    ranks = on_two_nodes(tmp_path, data, port, [launcher, launcher])
    assert_one_run(tmp_path, ranks, "DistributedDataParallel")


def test_accelerate_with_a_machine_rank(tmp_path, data):
    # accelerate starts several CPU processes for DeepSpeed only; a plain CPU config would quietly train alone
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": 2, "deepspeed_multinode_launcher": "standard"},
        "use_cpu": True,
        "mixed_precision": "no",
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launcher += ["--config_file", str(tmp_path / "two.yaml"), "--num_machines", "2", "--num_processes", "2"]
    launcher += ["--main_process_ip", "127.0.0.1", "--main_process_port", port, "--rdzv_backend", "c10d"]
    ranks = on_two_nodes(tmp_path, data, port, [[*launcher, "--machine_rank", str(rank)] for rank in (0, 1)])
    assert_one_run(tmp_path, ranks, "DeepSpeedEngine")
