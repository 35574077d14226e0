"""SIGTERM ends a run with a checkpoint to resume from; a second one, or Ctrl-C, ends it at once."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from transformers import EarlyStoppingCallback, TrainerCallback

from harness import build_trainer
from q_hawkeye_trl.checkpointing.checkpoint_files import checkpoint_problem, resume_hint
from q_hawkeye_trl.checkpointing.stop_on_signal import SECOND_SIGNAL_AFTER, StopOnSignalCallback
from q_hawkeye_trl.errors import TrainingInterrupted
from test_crash import ROOT, SCRIPT, TINY, assert_same_run, data, finish, start, steps_logged, wait_until  # noqa: F401
from test_resume import OPTIONS, assert_resumed_exactly, length_of_text, resume, train
from tiny_models import tiny_dataset, tiny_policy

LAUNCHERS = {
    "accelerate": ["accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1"],
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"],
}


class SignalAtStep(TrainerCallback):
    """Sends this process a signal when a step begins."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM):
        self.step = step
        self.number = number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


def stop_at(folder: Path, step: int, number: signal.Signals = signal.SIGTERM, **options) -> TrainingInterrupted:
    before = signal.getsignal(number)
    callbacks = [StopOnSignalCallback(), SignalAtStep(step, number), *options.pop("callbacks", [])]
    with pytest.raises(TrainingInterrupted) as stopped:
        train(folder, callbacks=callbacks, **options)
    assert signal.getsignal(number) == before
    return stopped.value


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_saves_after_the_step_and_the_run_resumes(tmp_path, caplog, number):
    options = {"num_iterations": 2, "save_strategy": "no"}
    stopped = stop_at(tmp_path / "stopped", 2, number, **options)
    assert stopped.code == 128 + number
    assert stopped.step == 2
    checkpoint = tmp_path / "stopped" / "checkpoint-2"
    for part in (number.name, "step 2", str(checkpoint), "--resume_from_checkpoint true"):
        assert part in str(stopped)
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-2"]
    whole = train(tmp_path / "whole", **options)
    assert_resumed_exactly(resume(tmp_path / "resumed", checkpoint, **options), whole)


def test_a_stop_saves_though_only_the_best_is_kept_and_patience_is_restored(tmp_path):
    def worse_and_worse(completions, trainer_state, **kwargs):
        return [length / 1000 - trainer_state.global_step for length in length_of_text(completions)]

    def options() -> dict:
        return {
            "reward_funcs": [worse_and_worse],
            "max_steps": 6,
            "eval_dataset": tiny_dataset(2, seed=1),
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "best",
            "save_total_limit": 1,
            "per_device_eval_batch_size": 8,
            "load_best_model_at_end": True,
            "metric_for_best_model": "reward",
            "greater_is_better": True,
        }

    stop_at(tmp_path, 3, callbacks=[EarlyStoppingCallback(3)], **options())
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-3"}
    whole = train(tmp_path / "whole", callbacks=[EarlyStoppingCallback(3)], **options())
    assert whole.trainer.state.global_step == 4  # best at 1, then three that are not better
    resumed = resume(tmp_path, tmp_path / "checkpoint-3", callbacks=[EarlyStoppingCallback(3)], **options())
    assert resumed.state.global_step == 4
    assert_resumed_exactly(resumed, whole)
    assert resumed.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_signals_outside_of_the_steps_have_their_usual_effect(tmp_path):
    handlers = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            handlers.append(signal.getsignal(signal.SIGTERM))

        def on_step_end(self, args, state, control, **kwargs):
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    train(tmp_path / "a", callbacks=[Watch(), StopOnSignalCallback()], max_steps=1)
    assert handlers[0] == before != handlers[1]
    assert signal.getsignal(signal.SIGTERM) == before
    # only the main thread may set handlers; elsewhere the callback does nothing
    thread = threading.Thread(target=train, args=(tmp_path / "b",), kwargs={"callbacks": [StopOnSignalCallback()]})
    thread.start()
    thread.join()
    assert checkpoint_problem(tmp_path / "b" / "checkpoint-3") is None


def test_an_error_in_training_restores_the_handlers(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]

    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            assert signal.getsignal(signal.SIGTERM) != before[0]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(tmp_path, callbacks=[StopOnSignalCallback(), Fails()])
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_stopped_run_resumes_in_the_same_process(tmp_path):
    model, processor = tiny_policy("qwen2_5_vl")
    callbacks = [StopOnSignalCallback(), SignalAtStep(1)]
    options = OPTIONS | {"reward_funcs": [length_of_text]}
    trainer = build_trainer(tmp_path, model=model, processing_class=processor, callbacks=callbacks, **options)
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


def wait_until_begun(workers: list[psutil.Process], number: signal.Signals) -> None:
    """On a busy machine a worker can be forked and not have begun: until then a signal ends it."""
    deadline = time.monotonic() + 60
    for worker in workers:
        while True:
            (blocked,) = re.findall(r"SigBlk:\s*(\w+)", Path(f"/proc/{worker.pid}/status").read_text())
            if int(blocked, 16) >> (number - 1) & 1:
                break
            assert time.monotonic() < deadline, f"worker {worker.pid} doesn't block {number.name}"
            time.sleep(0.05)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the sender of a signal is unknown")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_to_workers_too_does_not_end_the_run_before_it_is_saved(tmp_path, number):
    workers = []
    others = psutil.Process().children()  # of tests before

    class SignalToAll(TrainerCallback):
        """As a scheduler does: to the training and its data loader's workers, from a process of its own."""

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                workers.extend(child for child in psutil.Process().children() if child not in others)
                assert len(workers) == 2
                wait_until_begun(workers, number)
                everyone = [str(each.pid) for each in (psutil.Process(), *workers)]
                subprocess.run(["kill", f"-{number.name[3:]}", *everyone], check=True)
                time.sleep(1)
                assert all(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in workers)

    options = {"train_dataset": tiny_dataset(40), "max_steps": 4, "dataloader_num_workers": 2, "save_strategy": "no"}
    with pytest.raises(TrainingInterrupted):
        train(tmp_path, callbacks=[StopOnSignalCallback(), SignalToAll()], **options)
    assert checkpoint_problem(tmp_path / "checkpoint-2") is None


@pytest.mark.slow
def test_workers_end_with_the_training_process(tmp_path):
    script = (
        "import os, sys, torch\n"
        "from q_hawkeye_trl.checkpointing.stop_on_signal import shield_workers_from_signals\nimport signal\n"
        "loader = torch.utils.data.DataLoader(range(100), num_workers=1)\n"
        "shield_workers_from_signals(loader, [signal.SIGTERM])\n"
        "batches = iter(loader)\nnext(batches)\n"
        "(worker,) = batches._workers\n"
        "if sys.argv[1] == 'terminated': worker.terminate(); worker.join(10); print(worker.exitcode)\n"
        "else: print(worker.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = [sys.executable, "-c", script]
    assert subprocess.run([*run, "terminated"], capture_output=True, text=True).stdout.strip() == "0"
    worker = psutil.Process(int(subprocess.run([*run, "killed"], capture_output=True, text=True).stdout))
    assert not psutil.wait_procs([worker], timeout=30)[1]


def test_the_hint_says_if_there_is_no_checkpoint(tmp_path):
    assert "no complete checkpoint" in resume_hint(tmp_path)


def test_a_finished_run_that_is_resumed_does_not_train(tmp_path):
    # transformers adds a step where the last one does not end an epoch
    whole = train(tmp_path / "whole", max_steps=3)
    resumed = resume(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-3", max_steps=3)
    assert resumed.state.global_step == 3
    expected = whole.trainer.state.log_history
    assert resumed.state.log_history[-1]["train_loss"] == expected[-1]["train_loss"]
    assert [line["step"] for line in resumed.state.log_history] == [1, 2, 3, 3]


def launched(launcher: str, out: Path, data: Path, *options: str) -> subprocess.Popen:  # noqa: F811
    command = [sys.executable, "-m", *LAUNCHERS[launcher], str(SCRIPT), "--data_dir", str(data)]
    command += ["--output_dir", str(out), *TINY, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen(command, env=environment, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launched_runs_stop_on_all_ranks_and_resume(data, tmp_path, launcher):  # noqa: F811
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    options = ("--max_steps", "9", "--validate", "false")
    process = launched(launcher, out, data, *options)
    wait_until(lambda: steps_logged(out) >= 2, process)
    ranks = psutil.Process(process.pid).children(recursive=True)
    if launcher == "torchrun":
        process.terminate()  # it passes the signal on
    else:
        os.killpg(process.pid, signal.SIGTERM)  # as schedulers do: this launcher keeps it to itself
    output = process.communicate(timeout=100)[0]
    assert process.returncode != 0
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive
    (step,) = re.findall(r"SIGTERM; the run stopped after step (\d)\.", output)  # once, by the main process
    assert int(step) < 9
    assert f"checkpoint-{step} with --resume_from_checkpoint true" in output
    finish(launched(launcher, out, data, *options, "--resume_from_checkpoint", "true"))
    finish(launched(launcher, whole, data, *options))
    assert_same_run(out, whole)


@pytest.mark.slow
def test_the_script_ends_with_the_status_of_the_signal(data, tmp_path):  # noqa: F811
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(tmp_path / str(status), data, "--max_steps", "60")
        wait_until(lambda: (tmp_path / str(status) / "checkpoint-1").is_dir(), process)  # noqa: B023
        process.send_signal(number)
        output = finish(process, status)
        assert "--resume_from_checkpoint true" in output
        assert "Traceback" not in output


@pytest.mark.slow
def test_a_second_signal_ends_at_once(data, tmp_path):  # noqa: F811
    process = start(tmp_path / "run", data, "--max_steps", "60", slow=20.0)  # stuck in its first checkpoint
    wait_until(lambda: steps_logged(tmp_path / "run") >= 1, process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # a scheduler and a launcher: the same one
    time.sleep(SECOND_SIGNAL_AFTER + 0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == -signal.SIGTERM
