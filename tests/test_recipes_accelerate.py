"""recipes/accelerate/: accelerate reads each strictly and makes of it what its name says; the launchers launch."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from q_hawkeye_trl.demo.synthetic import write_synthetic_koniq
from q_hawkeye_trl.train.arguments import make_parser
from q_hawkeye_trl.train.launcher import launch_command
from q_hawkeye_trl.train.recipes import RECIPES
from recipe_files import ACCELERATE, FOLDER, ROOT, header_of, name_of

each = pytest.mark.parametrize("path", ACCELERATE, ids=name_of)
DEEPSPEED = [path for path in ACCELERATE if "zero" in path.name or "cpu" in path.name]


def launch_arguments(path: Path, *options: str):
    """The arguments of `accelerate launch` after the configuration was put into them."""
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(path), *options, "examples/train_koniq.py"])
    return _validate_launch_command(args)[0]


@each
def test_accelerate_knows_every_key(path):
    config = load_config_from_file(str(path))  # refuses unknown keys at the top
    assert isinstance(config, ClusterConfig)
    options = {action.dest for action in launch_command_parser()._actions}
    for key in ("deepspeed_config", "fsdp_config"):
        assert set(getattr(config, key)) <= options, "a key that no option of `accelerate launch` has"


@each
def test_accumulation_and_clipping_are_left_to_the_recipe(path):
    """A number here would contradict the recipe's; TRL's own examples set an accumulation of 1 for ZeRO-1."""
    plugin = yaml.safe_load(path.read_text()).get("deepspeed_config", {})
    assert not {"gradient_accumulation_steps", "gradient_clipping", "deepspeed_config_file"} & set(plugin)


@each
def test_the_number_of_processes_and_the_kind(path):
    config = yaml.safe_load(path.read_text())
    kinds = {"single_gpu": ("NO", 1), "ddp": ("MULTI_GPU", 4), "fsdp2": ("FSDP", 4)}
    kinds |= {"cpu_two_processes": ("DEEPSPEED", 2)}
    assert (config["distributed_type"], config["num_processes"]) == kinds.get(path.stem, ("DEEPSPEED", 4))
    on_cpu = path.stem.startswith("cpu")
    assert (config["use_cpu"], config["mixed_precision"]) == ((True, "no") if on_cpu else (False, "bf16"))


STAGES = {"zero1": 1, "zero2": 2, "zero3": 3, "zero3_offload": 3, "cpu_two_processes": 2}


@pytest.mark.parametrize("path", DEEPSPEED, ids=name_of)
def test_the_deepspeed_plugin(path):
    args = launch_arguments(path)
    assert args.use_deepspeed
    args.deepspeed_fields_from_accelerate_config = ""
    command, environment = prepare_deepspeed_cmd_env(args)
    assert command is None  # torch's own launcher, on several nodes too
    with mock.patch.dict(os.environ, environment, clear=True):
        plugin = DeepSpeedPlugin()
    zero = plugin.deepspeed_config["zero_optimization"]
    assert zero["stage"] == plugin.zero_stage == STAGES[path.stem]
    device = "cpu" if "offload" in path.stem else "none"
    assert {zero[key]["device"] for key in ("offload_optimizer", "offload_param")} == {device}
    assert plugin.deepspeed_config["gradient_accumulation_steps"] == "auto"
    assert plugin.deepspeed_config.get("gradient_clipping", "auto") == "auto"
    if plugin.zero_stage == 3:
        assert plugin.zero3_init_flag
        assert zero["stage3_gather_16bit_weights_on_model_save"]


def test_the_fsdp_plugin():
    args = launch_arguments(FOLDER / "accelerate" / "fsdp2.yaml")
    assert args.use_fsdp
    with mock.patch.dict(os.environ, prepare_multi_gpu_env(args), clear=True):
        plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing
    assert str(plugin.state_dict_type).endswith("FULL_STATE_DICT")
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"


def test_the_plain_ones():
    assert launch_arguments(FOLDER / "accelerate" / "ddp.yaml").multi_gpu
    single = launch_arguments(FOLDER / "accelerate" / "single_gpu.yaml")
    assert [single.multi_gpu, single.use_deepspeed, single.use_fsdp] == [False] * 3
    assert single.num_processes == 1


@pytest.mark.parametrize("name", ["multi_node.sh", "multi_node.sbatch"])
def test_launchers_are_valid_bash_and_ask_for_what_they_need(name):
    path = FOLDER / "accelerate" / name
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    environment = {"PATH": os.environ["PATH"]}
    run = subprocess.run(["bash", path], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert re.search(r"set NODES to|SLURM_NNODES: unbound", run.stderr)


def test_the_slurm_script_leaves_time_for_a_checkpoint_and_hands_its_cores_on(tmp_path):
    """torch's launcher kills its processes after the time-out, which must be over before SLURM kills them all."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node1\n")
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT"\nprintf "%s\\n" "$@"\n')
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "64"}
    there = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", **slurm}
    script = FOLDER / "accelerate" / "multi_node.sbatch"
    run = subprocess.run(["bash", script, "--seed", "1"], env=there, capture_output=True, text=True, check=True)
    timeout, *words = run.stdout.splitlines()
    (before_the_end,) = re.findall(r"^#SBATCH --signal=TERM@(\d+)$", script.read_text(), flags=re.MULTILINE)
    assert 30 < int(timeout) < int(before_the_end)
    assert words[:2] == ["--kill-on-bad-exit=1", "--cpus-per-task=64"]
    assert words[-2:] == ["--seed", "1"]


def test_accelerate_leaves_the_shutdown_timeout_to_the_environment(monkeypatch):
    """`accelerate launch` has no option for it; torch's launcher reads the variable where none is given."""
    from accelerate.utils.launch import _filter_args
    from torch.distributed.run import config_from_args, get_args_parser

    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "570")
    args = launch_arguments(FOLDER / "accelerate" / "ddp.yaml", "--num_processes", "2")
    prepare_multi_gpu_env(args)
    words = ["--training_script", args.training_script, "--training_script_args", args.training_script_args]
    args = _filter_args(args, get_args_parser(), words)
    args.nproc_per_node = "2"
    assert config_from_args(args)[0].shutdown_timeout == 570


@pytest.fixture
def launch(monkeypatch):
    """The words that `q-hawkeye train` executes in place of itself, after the interpreter's `-m`."""
    for name in ("WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)

    def launch(words: str, gpus: int = 0) -> list[str] | None:
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
        monkeypatch.setattr("torch.accelerator.is_available", lambda: gpus > 0)
        command = launch_command(words.split(), make_parser())
        return command and command[2:]

    return launch


TRAINING = ["--module", "q_hawkeye_trl", "train", "--seed", "1"]
ZERO3 = ["--config_file", str(RECIPES / "accelerate" / "zero3.yaml")]


def test_one_process_runs_in_place(launch, monkeypatch):
    assert launch("--seed 1") is None
    assert launch("--seed 1", gpus=1) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch("--seed 1", gpus=2) is None  # started by a launcher


@pytest.mark.parametrize(
    ("words", "gpus", "expected"),
    [
        ("--seed 1", 2, ["accelerate.commands.launch", *TRAINING]),
        ("--accelerate_config zero3 --seed 1", 4, ["accelerate.commands.launch", *ZERO3, *TRAINING]),
        (
            "--num_processes 2 --accelerate_config=zero3 --main_process_port 7 --seed 1",
            4,
            ["accelerate.commands.launch", "--main_process_port", "7", "--num_processes", "2", *ZERO3, *TRAINING],
        ),
        (
            "--seed 1 --num_processes 2",
            0,
            ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", *TRAINING, "--use_cpu", "true"],
        ),
    ],
)
def test_several_processes_are_started_by_a_launcher(launch, words, gpus, expected):
    assert launch(words, gpus) == expected


def test_an_accelerate_configuration_that_is_missing_is_named(launch):
    with pytest.raises(FileNotFoundError, match="zero4"):
        launch("--accelerate_config zero4")


# Really launched


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "koniq10k"
    return write_synthetic_koniq(folder, train=8, validation=2, test=4, progress=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**further: str) -> dict[str, str]:
    """This process's, with the environment's programs first and DeepSpeed on the CPU."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **further}


def options(data: Path, folder: Path) -> list[str]:
    """Four rollouts a process of groups of eight: that runs with two processes only. A checkpoint is saved."""
    small = {"data_dir": data, "output_dir": folder, "max_steps": 2, "per_device_train_batch_size": 4}
    small |= {"use_cpu": "true", "held_out_images": 2, "validate": "false", "save_strategy": "steps", "save_steps": 2}
    return [word for key, value in small.items() for word in (f"--{key}", str(value))]


def launched(launch: list[str], data: Path, folder: Path) -> subprocess.CompletedProcess:
    """Runs a launcher with the small training to its end, whatever its status."""
    command = [*launch, *options(data, folder)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=280
    )


def check_two_processes(folder: Path, *, sharded: bool) -> None:
    """A checkpoint has the random state of every process, and with ZeRO the optimizer's shard of every process."""
    checkpoint = folder / "checkpoint-2"
    assert sorted(path.name for path in checkpoint.glob("rng_state_*.pth")) == ["rng_state_0.pth", "rng_state_1.pth"]
    shards = sorted(path.name for path in checkpoint.glob("global_step*/*optim_states.pt"))
    assert [re.findall(r"rank_(\d+)", name)[0] for name in shards] == (["0", "1"] if sharded else [])
    assert (folder / "summary.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--accelerate_config", "--num_processes"])
def test_two_processes_on_a_cpu(data, tmp_path, option):
    """The commands of the header of cpu_two_processes.yaml."""
    commands = header_of(FOLDER / "accelerate" / "cpu_two_processes.yaml").fields["Command"]
    (command,) = (c for c in commands if option in c)
    words = [word for word in command.split() if not word.startswith("DS_ACCELERATOR=")]
    sharded = option == "--accelerate_config"
    port = ["--main_process_port", str(free_port())] if sharded else []
    run = launched([*words, *port], data, tmp_path / "run")
    assert run.returncode == 0, run.stderr[-3000:]
    check_two_processes(tmp_path / "run", sharded=sharded)


@pytest.mark.slow
def test_accelerates_own_form_starts_one_process(data, tmp_path):
    """Why the header names other commands: the day this fails they may become simpler."""
    launch = ["accelerate", "launch", "--cpu", "--num_processes", "2", "examples/train_koniq.py"]
    run = launched(launch, data, tmp_path / "run")
    assert run.returncode != 0
    assert "generation_batch_size (4)" in run.stderr + run.stdout


def wait_for(nodes: list[subprocess.Popen]) -> None:
    try:
        for node in nodes:
            out, _ = node.communicate(timeout=280)
            assert node.returncode == 0, out[-3000:]
    finally:
        for node in nodes:
            node.kill()


@pytest.mark.slow
def test_two_nodes_meet_at_a_rendezvous_on_loopback(data, tmp_path):
    port, config = str(free_port()), "recipes/accelerate/cpu_two_processes.yaml"
    nodes = [
        subprocess.Popen(
            ["bash", "recipes/accelerate/multi_node.sh", *options(data, tmp_path / "run")],
            cwd=ROOT,
            env=environment(NODES="2", NODE_RANK=str(n), HEAD="127.0.0.1", PORT=port, GPUS="1", CONFIG=config),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for n in range(2)
    ]
    wait_for(nodes)
    check_two_processes(tmp_path / "run", sharded=True)


@pytest.mark.slow
def test_the_slurm_script_starts_a_launcher_on_every_node(data, tmp_path):
    """With stand-ins: `srun` runs its command once a node with SLURM_NODEID, `scontrol` names the nodes."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "scontrol").write_text('#!/bin/sh\n[ "$3" = "node[1-2]" ] && printf "127.0.0.1\\nnode2\\n"\n')
    srun = '#!/bin/sh\nshift\nSLURM_NODEID=1 "$@" &\nSLURM_NODEID=0 "$@" || exit 1\nwait $!\n'
    (programs / "srun").write_text(srun)
    for program in programs.iterdir():
        program.chmod(0o755)
    slurm = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_ID": str(free_port())}
    slurm |= {"SLURM_JOB_NODELIST": "node[1-2]", "CONFIG": "recipes/accelerate/cpu_two_processes.yaml"}
    there = environment(**slurm)
    there["PATH"] = f"{programs}{os.pathsep}{there['PATH']}"
    job = subprocess.Popen(
        ["bash", "recipes/accelerate/multi_node.sbatch", *options(data, tmp_path / "run")],
        cwd=ROOT,
        env=there,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for([job])
    check_two_processes(tmp_path / "run", sharded=True)
