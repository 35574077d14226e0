"""`q-hawkeye ablate`: what it runs and does not repeat, what it refuses, and what a failure costs."""

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from q_hawkeye_trl.demo import synthetic
from q_hawkeye_trl.train.ablation_runs import main
from q_hawkeye_trl.wording import FIGURES
from recipe_files import FOLDER

GRPO, FULL, ALPHA = (FOLDER / "ablations" / f"{name}.yaml" for name in ("grpo", "full", "alpha_5"))

# Replaces the training: writes what a run writes, and logs each call. A file `fail-RECIPE-SEED` makes it fail, a file
# `checkpoint-RECIPE-SEED` makes it die after a complete checkpoint, `wait` makes it slow.
STAND_IN = """
import json, sys, time
from itertools import pairwise
from pathlib import Path

control, words = Path(__file__).parent, sys.argv[4:]
options = {word[2:]: value for word, value in zip(words, words[1:]) if word.startswith("--")}
out, seed = Path(options["output_dir"]), int(options["seed"])
name = Path(options["config"]).stem
with open(control / "calls.jsonl", "a") as calls:
    calls.write(json.dumps({"recipe": name, "seed": seed, "command": sys.argv[1:4], "words": words}) + "\\n")
out.mkdir(parents=True, exist_ok=True)
if (control / "wait").exists():
    (control / f"started-{name}-{seed}").touch()
    time.sleep(600)
if (control / f"fail-{name}-{seed}").exists():
    (out / "half.txt").write_text("half")
    sys.exit("a step\\nout of memory")
if (control / f"checkpoint-{name}-{seed}").exists():
    from safetensors.torch import save_file
    from torch import zeros

    checkpoint = out / "checkpoint-3"
    checkpoint.mkdir(exist_ok=True)
    save_file({"w": zeros(1)}, checkpoint / "model.safetensors")
    (checkpoint / "trainer_state.json").write_text('{"global_step": 3}')
    sys.exit("killed")
value = 0.5 + 0.01 * seed + (0.1 if name == "full" else 0)
figures = dict.fromkeys(%r, value)
(out / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "reward": value * n}) + "\\n" for n in (1, 2, 3)))
(out / "summary.json").write_text(json.dumps({"before": dict.fromkeys(figures, 0.4), "after": figures}))
"""


@pytest.fixture
def control(tmp_path) -> Path:
    """The folder of the stand-in, in which files steer it."""
    folder = tmp_path / "control"
    folder.mkdir()
    (folder / "stand_in.py").write_text(STAND_IN % (list(FIGURES),))
    return folder


def arguments(control: Path, *words: object) -> list[str]:
    launch = f"{sys.executable} {control / 'stand_in.py'}"
    out = control.parent / "out"
    return [str(word) for word in ("--output_dir", out, "--launch", launch, "--data_dir", "none", *words)]


@pytest.fixture
def compare(control, capsys):
    """Run the command in this process; return the exit message or `None`."""

    def compare(*words: object) -> object:
        try:
            main(arguments(control, *words))
        except SystemExit as error:
            return error.code
        return None

    return compare


def calls(control: Path) -> list[dict]:
    path = control / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def who(control: Path) -> list[tuple[str, int]]:
    return [(call["recipe"], call["seed"]) for call in calls(control)]


def test_every_recipe_is_trained_with_every_seed(compare, control, tmp_path, capsys):
    assert compare("--recipes", GRPO, FULL, "--seeds", 0, 1, "--rewards", "rank", "format", "--beta=0.1") is None
    assert who(control) == [("grpo", 0), ("full", 0), ("grpo", 1), ("full", 1)]
    for call in calls(control):
        words = call["words"]
        assert call["command"] == ["-m", "q_hawkeye_trl", "train"]
        assert words[words.index("--config") + 1] == str(FOLDER / "ablations" / f"{call['recipe']}.yaml")
        assert words[words.index("--rewards") :][:3] == ["--rewards", "rank", "format"]
        assert "--beta=0.1" in words
        assert words[words.index("--keep_best") + 1] == "false"
    out = tmp_path / "out"
    text = (out / "ablations.md").read_text()
    assert "| full | 2 | 0.605 [" in text
    assert "| full | 2 | +0.100 [+0.100, +0.100]" in text
    assert "Plain GRPO: neither term" in text
    assert "--rewards rank format --beta=0.1" in text
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len((out / "results.csv").read_text().splitlines()) == 1 + 4 * 2
    assert "full, seed 0: done; 2 left, about" in capsys.readouterr().out


def test_the_default_set_is_the_four_arms(compare, control):
    assert compare("--seeds", 3) is None
    assert who(control) == [("grpo", 3), ("uncertainty", 3), ("perception", 3), ("full", 3)]


def test_what_is_finished_is_not_done_twice(compare, control, tmp_path):
    assert compare("--recipes", GRPO, FULL, "--seeds", 0) is None
    page = (tmp_path / "out" / "ablations.md").read_text()
    assert compare("--recipes", GRPO, FULL, "--seeds", 0) is None
    assert len(calls(control)) == 2
    assert (tmp_path / "out" / "ablations.md").read_text() == page
    assert compare("--recipes", GRPO, FULL, ALPHA, "--seeds", 0, 1) is None
    assert who(control)[2:] == [("alpha_5", 0), ("grpo", 1), ("full", 1), ("alpha_5", 1)]


def test_results_of_other_options_are_not_mixed_in(compare, control, tmp_path):
    assert compare("--recipes", GRPO, "--seeds", 0, "--max_steps", 4) is None
    message = compare("--recipes", FULL, GRPO, "--seeds", 0, "--max_steps", 5)
    assert "seed-0.json was made with another option" in message
    assert "name another --output_dir" in message
    assert who(control) == [("grpo", 0)]  # nothing was run


def test_a_recipe_that_changed_is_not_mixed_in(compare, control, tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump({"beta": 0.1}))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("# Mine. With more.\n\nbase: base.yaml\nseed: 1\n")
    assert compare("--recipes", recipe, "--seeds", 0) is None
    assert "| mine | Mine |" in (tmp_path / "out" / "ablations.md").read_text()
    base.write_text(yaml.safe_dump({"beta": 0.2}))
    assert "made with another recipe: {'beta': 0.1" in compare("--recipes", recipe, "--seeds", 0)
    assert len(calls(control)) == 1


def test_another_base_is_another_recipe(compare, control, tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump({"beta": 0.1}))
    assert compare("--recipes", GRPO, "--seeds", 0, "--base", base) is None
    assert calls(control)[0]["words"][-2:] == ["--base", str(base)]
    record = json.loads((tmp_path / "out" / "grpo" / "seed-0.json").read_text())
    assert record["recipe"]["beta"] == 0.1
    assert "learning_rate" not in record["recipe"]  # of the demo's recipe, whose place was taken


def test_one_failure_is_named_and_loses_nothing(compare, control, tmp_path):
    (control / "fail-full-0").touch()
    assert compare("--recipes", GRPO, FULL, "--seeds", 0, 1) == 1
    assert len(calls(control)) == 4
    text = (tmp_path / "out" / "ablations.md").read_text()
    assert "## 1 run failed" in text
    assert "- full, seed 0: out of memory" in text
    assert "| full | 1 |" in text
    (control / "fail-full-0").unlink()
    assert compare("--recipes", GRPO, FULL, "--seeds", 0, 1) is None
    assert who(control)[4:] == [("full", 0)]
    assert "failed" not in (tmp_path / "out" / "ablations.md").read_text()
    aside = tmp_path / "out" / "full" / "seed-0.unfinished-1"
    assert (aside / "half.txt").read_text() == "half"  # kept
    assert not (tmp_path / "out" / "full" / "seed-0" / "half.txt").exists()


def test_a_misspelt_option_does_not_stand_in_the_way_of_the_right_one(compare, control, tmp_path):
    (control / "fail-grpo-0").touch()
    assert compare("--recipes", GRPO, "--seeds", 0, "--max_stepz", 4) == 1
    (control / "fail-grpo-0").unlink()
    assert compare("--recipes", GRPO, "--seeds", 0, "--max_steps", 4) is None
    record = json.loads((tmp_path / "out" / "grpo" / "seed-0.json").read_text())
    assert record["options"][-2:] == ["--max_steps", "4"]


def test_a_checkpoint_of_other_options_is_not_gone_on_from(compare, control):
    (control / "checkpoint-grpo-0").touch()
    assert compare("--recipes", GRPO, "--seeds", 0, "--max_steps", 4) == 1
    message = compare("--recipes", GRPO, "--seeds", 0, "--max_steps", 5)
    assert "seed-0.json was made with another option" in message
    assert len(calls(control)) == 1


def test_no_secret_is_written_or_printed(compare, control, tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("seed: 1\nenv: {WANDB_API_KEY: correct-horse}\n")
    assert compare("--recipes", recipe, "--seeds", 0, "--hub_token", "battery-staple") is None
    out = tmp_path / "out"
    kept = [path.read_text() for path in out.rglob("*") if path.is_file() and path.suffix in (".json", ".md", ".log")]
    texts = [*kept, *capsys.readouterr()]
    assert "hidden" in "".join(texts)
    assert not [text for text in texts if "correct-horse" in text or "battery-staple" in text]
    assert calls(control)[0]["words"][-1] == "battery-staple"  # the run itself gets it


def test_a_run_with_a_checkpoint_goes_on_from_it(compare, control, tmp_path):
    (control / "checkpoint-grpo-0").touch()
    assert compare("--recipes", GRPO, "--seeds", 0) == 1
    (control / "checkpoint-grpo-0").unlink()
    assert compare("--recipes", GRPO, "--seeds", 0) is None
    first, second = (call["words"] for call in calls(control))
    assert second == [*first, "--resume_from_checkpoint", "true"]
    assert not list((tmp_path / "out" / "grpo").glob("*unfinished*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "3"], "--seed"),
        (["--output_dir=x", "--config=y"], "--config"),
        (["--recipes", GRPO, GRPO], "grpo"),
        (["--seeds", "1", "1"], "a seed"),
        (["--baseline", "full", "--recipes", GRPO], "--baseline full is not among the recipes grpo"),
        (["--unseen"], "--unseen measures the synthetic set"),
    ],
)
def test_wrong_command_lines(compare, control, capsys, words, message):
    assert compare(*words) == 2
    assert message in capsys.readouterr().err
    assert not calls(control)


def test_a_recipe_that_is_missing_is_named(compare, control):
    assert "nowhere.yaml" in compare("--recipes", "nowhere.yaml")
    assert not calls(control)


def wait_until(condition, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.parametrize("kind", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_it_leaves_no_process_and_goes_on_later(compare, control, kind):
    (control / "wait").touch()
    words = arguments(control, "--recipes", GRPO, FULL, "--seeds", 0, 1, "--jobs", 2)
    script = subprocess.Popen(
        [sys.executable, "-m", "q_hawkeye_trl", "ablate", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: len(list(control.glob("started-*"))) == 2)  # two at a time
    script.send_signal(kind)
    out, _ = script.communicate(timeout=60)
    assert script.returncode == 1
    assert "the same command resumes" in out
    assert len(calls(control)) == 2  # nothing was begun after the signal
    (control / "wait").unlink()
    assert compare("--recipes", GRPO, FULL, "--seeds", 0, 1, "--jobs", 2) is None
    assert sorted(who(control)[2:]) == [("full", 0), ("full", 1), ("grpo", 0), ("grpo", 1)]


@pytest.mark.parametrize(("threads", "expected"), [(None, ["4"]), ("1", ["4"]), ("3", [])])
def test_threads_are_shared_among_the_jobs_unless_the_user_says(compare, control, monkeypatch, threads, expected):
    monkeypatch.setattr("q_hawkeye_trl.train.ablation_runs.usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert compare("--recipes", GRPO, "--seeds", 0, "--jobs", 2) is None
    words = calls(control)[0]["words"]
    assert [value for word, value in pairwise(words) if word == "--cpu_threads"] == expected


def test_unseen_kinds_are_on_contents_of_their_own(control, monkeypatch, tmp_path):
    written = []

    def write(root, *, kinds=synthetic.SEEN_KINDS, seed=0, **sizes):
        written.append((Path(root).name, set(kinds), seed))

    monkeypatch.setattr(synthetic, "write_synthetic_koniq", write)
    monkeypatch.setattr("q_hawkeye_trl.train.ablation_runs._score_unseen", lambda *_: dict.fromkeys(FIGURES, 0.25))
    launch = f"{sys.executable} {control / 'stand_in.py'}"
    main(["--recipes", str(GRPO), "--seeds", "0", "--output_dir", str(tmp_path), "--launch", launch, "--unseen"])
    (seen, seen_kinds, seen_seed), (unseen, unseen_kinds, unseen_seed) = written
    assert (seen, unseen) == ("seen", "unseen")
    assert unseen_kinds == set(synthetic.UNSEEN_KINDS)
    assert seen_kinds.isdisjoint(unseen_kinds)
    assert seen_seed != unseen_seed  # no picture content in both
    assert "| grpo | 1 | 0.250" in (tmp_path / "ablations.md").read_text()


@pytest.mark.slow
def test_real_trainings_end_in_a_page(tmp_path):
    data = synthetic.write_synthetic_koniq(tmp_path / "koniq", train=16, validation=2, test=6, progress=False)
    words = ["--output_dir", tmp_path / "out", "--recipes", GRPO, FULL, "--seeds", 0, 1, "--data_dir", data]
    words += ["--max_steps", 2, "--per_device_train_batch_size", 16, "--use_cpu", "true"]
    main([str(word) for word in words])
    text = (tmp_path / "out" / "ablations.md").read_text()
    assert "| full | 2 |" in text
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/seed-?.json")]
    assert len(records) == 4
    starts = {json.dumps(record["figures"]["before"]) for record in records}
    assert len(starts) == 1  # all from one start
    ends = {json.dumps(record["figures"]["after"]) for record in records}
    assert len(ends) > 1
