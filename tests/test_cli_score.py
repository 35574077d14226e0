"""`q-hawkeye score` and `q-hawkeye merge` in this process; kills and several processes are in test_score_faults."""

import csv
import json
import os
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from q_hawkeye_trl import cli
from q_hawkeye_trl.demo.synthetic import content_seed, draw_sample
from q_hawkeye_trl.question import Question
from q_hawkeye_trl.scoring.run import model_stamp
from q_hawkeye_trl.scoring.scorer import HawkeyeScorer
from tiny_models import save_policy

FIELDS = {"image", "score", "spread", "parse_rate", "rollouts", "clamped", "error"}


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(12):
        picture = Image.fromarray(draw_sample(content_seed("test", 0, index)).picture)
        picture.resize((112 - 28 * (index % 3), 84)).save(folder / f"{index:02}.png")
    return folder


def q_hawkeye(*arguments: object, status: int = 0) -> str:
    """Runs a command as `main` does; returns what it printed to both streams."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    error = result.exception
    if isinstance(error, ValueError | OSError):
        assert status == 1, error
        return str(error)
    assert error is None or isinstance(error, SystemExit), error
    assert result.exit_code == status, result.output
    return result.output


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_folder_to_jsonl_with_the_toy_policy(pictures, tmp_path):
    output = q_hawkeye("score", pictures, "--out", tmp_path / "scores.jsonl", "--max-new-tokens", 32)
    assert "bundled toy policy" in output
    assert "12 images: 12 scored" in output
    rows = lines(tmp_path / "scores.jsonl")
    assert [row["image"] for row in rows] == [str(pictures / f"{index:02}.png") for index in range(12)]
    for row in rows:
        assert set(row) == FIELDS
        assert row["rollouts"] == [row["score"]]
        assert 1 <= row["score"] <= 5
        assert (row["spread"], row["parse_rate"], row["error"]) == (None, 1.0, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "scores.jsonl"]


@pytest.mark.slow
def test_rollouts_reasoning_and_formats_agree(pictures, tmp_path):
    options = ("--rollouts", 4, "--reasoning", "--max-new-tokens", 32)
    for batch_size, suffix in ((1, "jsonl"), (12, "csv"), (64, "parquet")):  # whatever the batch
        q_hawkeye("score", pictures, "--out", tmp_path / f"s.{suffix}", *options, "--batch-size", batch_size)
    rows = lines(tmp_path / "s.jsonl")
    assert set(rows[0]) == FIELDS | {"reasoning"}
    assert all(len(row["rollouts"]) == 4 for row in rows)
    assert any(row["spread"] > 0 for row in rows)
    assert pq.read_table(tmp_path / "s.parquet").to_pylist() == rows
    with open(tmp_path / "s.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [float(row["score"]) for row in table] == [row["score"] for row in rows]
    assert [json.loads(row["rollouts"]) for row in table] == [row["rollouts"] for row in rows]
    assert [row["reasoning"] for row in table] == [row["reasoning"] for row in rows]


def test_broken_files_have_a_line_with_their_error_and_the_status_says_so(pictures, tmp_path):
    (pictures / "00.png").write_bytes((pictures / "00.png").read_bytes()[:200])
    (pictures / "text.jpg").write_text("no picture")
    (pictures / "empty.png").write_bytes(b"")
    output = q_hawkeye("score", pictures, "--out", tmp_path / "s.jsonl", "--max-new-tokens", 32, status=3)
    assert "14 images: 11 scored, 3 unreadable" in output
    broken = {Path(row["image"]).name: row for row in lines(tmp_path / "s.jsonl") if row["error"] is not None}
    assert set(broken) == {"00.png", "text.jpg", "empty.png"}
    for name, row in broken.items():
        assert name in row["error"]
        assert (row["score"], row["parse_rate"], row["rollouts"]) == (None, None, [])


def test_images_whose_answers_hold_no_number_are_no_errors(pictures, tmp_path):
    model = save_policy("qwen2_5_vl", tmp_path / "model")
    output = q_hawkeye(
        "score", pictures / "00.png", "--model", model, "--out", tmp_path / "s.jsonl", "--max-new-tokens", 4
    )
    assert "toy" not in output
    assert "1 without a score" in output
    (row,) = lines(tmp_path / "s.jsonl")
    assert (row["score"], row["parse_rate"], row["rollouts"], row["error"]) == (None, 0.0, [None], None)


def test_without_out_the_terminal_has_the_scores(pictures, tmp_path):
    output = q_hawkeye("score", pictures / "0[0-3].png", "--max-new-tokens", 32)
    assert "4 images: 4 scored" in output
    assert "wrote" not in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def test_a_datasets_folder(pictures, tmp_path):
    files = sorted(str(path) for path in pictures.iterdir())
    rows = datasets.Dataset.from_dict({"image": files, "image_id": [f"id {n}" for n in range(12)]})
    rows.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "data")
    q_hawkeye("score", tmp_path / "data", "--out", tmp_path / "a.jsonl", "--max-new-tokens", 32)
    q_hawkeye("score", pictures, "--out", tmp_path / "b.jsonl", "--max-new-tokens", 32)
    first, second = lines(tmp_path / "a.jsonl"), lines(tmp_path / "b.jsonl")
    assert [row["image"] for row in first] == [f"id {n}" for n in range(12)]
    assert [row["score"] for row in first] == [row["score"] for row in second]


def test_the_page(pictures, tmp_path):
    (pictures / "text.jpg").write_text("no picture")
    q_hawkeye("score", pictures, "--html", tmp_path / "page.html", "--rollouts", 2, "--max-new-tokens", 32, status=3)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert text.count("data:image/jpeg;base64,") == 12
    assert text.count('<tr class="broken">') == 1
    assert "bundled toy policy" in text
    assert "2 rollouts an image" in text


def test_nothing_is_overwritten_unasked(pictures, tmp_path, monkeypatch):
    out, page = tmp_path / "s.jsonl", tmp_path / "s.html"
    for path in (out, page):
        path.write_text("precious")
        option = "--out" if path is out else "--html"
        message = q_hawkeye("score", pictures, option, path, status=1)
        assert f"{path} exists and is not overwritten" in message
        assert path.read_text() == "precious"
    q_hawkeye("score", pictures / "00.png", "--out", out, "--html", page, "--overwrite", "--max-new-tokens", 32)
    assert len(lines(out)) == 1


def stop_after(monkeypatch, count: int, error: BaseException) -> None:
    """Lets scoring stop after some images, as a crash or Ctrl-C would."""
    whole = HawkeyeScorer.score_sources

    def stopped(self, *given, **options):
        for number, scored in enumerate(whole(self, *given, **options)):
            if number == count:
                raise error
            yield scored

    monkeypatch.setattr(HawkeyeScorer, "score_sources", stopped)


def test_an_interrupted_run_goes_on_and_ends_in_the_same_file(pictures, tmp_path, monkeypatch):
    options = ("--rollouts", 3, "--max-new-tokens", 32, "--batch-size", 12)
    q_hawkeye("score", pictures, "--out", tmp_path / "whole.jsonl", *options)
    out = tmp_path / "s.jsonl"
    with monkeypatch.context() as patched:
        stop_after(patched, 7, KeyboardInterrupt())
        output = q_hawkeye("score", pictures, "--out", out, *options, status=130)
    assert "Interrupted" in output
    assert not out.exists()
    message = q_hawkeye("score", pictures, "--out", out, "--rollouts", 4, "--max-new-tokens", 32, status=1)
    assert "rollouts 3, now 4" in message
    scored: list[int] = []
    answer = HawkeyeScorer._score_batch

    def counted(self, sources, batch, images):
        scored.extend(batch)
        return answer(self, sources, batch, images)

    monkeypatch.setattr(HawkeyeScorer, "_score_batch", counted)
    output = q_hawkeye("score", pictures, "--out", out, *options)
    assert "7 of 12 images" in output
    assert len(scored) == 5
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "s.jsonl.partial").exists()


def test_overwrite_drops_unfinished_scores(pictures, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(patched, 3, OSError("disk full"))
        assert "disk full" in q_hawkeye("score", pictures, "--out", tmp_path / "s.jsonl", status=1)
    assert (tmp_path / "s.jsonl.partial").is_dir()
    output = q_hawkeye("score", pictures, "--out", tmp_path / "s.jsonl", "--max-new-tokens", 32, "--overwrite")
    assert "of 12 images already" not in output
    assert len(lines(tmp_path / "s.jsonl")) == 12


def test_replaced_weights_are_noticed(pictures, tmp_path, monkeypatch):
    model = save_policy("qwen2_5_vl", tmp_path / "model")
    arguments = ("score", pictures, "--model", model, "--out", tmp_path / "s.jsonl", "--max-new-tokens", 4)
    with monkeypatch.context() as patched:
        stop_after(patched, 3, KeyboardInterrupt())
        q_hawkeye(*arguments, status=130)
    save_policy("qwen2_5_vl", tmp_path / "model", seed=1)
    assert "weights" in q_hawkeye(*arguments, status=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.png"], "gone.png"),
        ([".", "--out", "s.txt"], "expected a name that ends in .jsonl, .csv, .parquet"),
        ([".", "--model", "./gone"], "./gone"),
        ([".", "--backend", "tgi"], "tgi"),
        ([".", "--backend", "vllm"], "vLLM, which is not installed"),
        ([".", "--dtype", "int4"], "int4"),
        ([".", "--score-min", "7"], "score_min 7"),
    ],
)
def test_bad_input_ends_in_a_message_and_leaves_nothing(pictures, monkeypatch, arguments, message):
    monkeypatch.chdir(pictures)
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    before = sorted(pictures.iterdir())
    if "--out" not in arguments:
        arguments = [*arguments, "--out", "s.jsonl"]
    assert message in q_hawkeye("score", *arguments, status=1)
    assert sorted(pictures.iterdir()) == before


def test_wrong_options_have_typers_status(pictures):
    assert "No such option" in q_hawkeye("score", pictures, "--rollout", 3, status=2)
    assert "Missing argument" in q_hawkeye("score", status=2)
    q_hawkeye("score", pictures, "--rollouts", 0, status=2)


def test_merge(tmp_path, pictures):
    from test_policy import adapter

    base = save_policy("qwen2_5_vl", tmp_path / "base")
    adapter("qwen2_5_vl", base, tmp_path / "adapter")
    assert "a whole model" in q_hawkeye("merge", tmp_path / "adapter", "--out", tmp_path / "merged")
    assert "nothing is overwritten" in q_hawkeye("merge", tmp_path / "adapter", "--out", tmp_path / "merged", status=1)
    answers = []
    for model in ("adapter", "merged", "base"):
        out = tmp_path / f"{model}.jsonl"
        q_hawkeye("score", pictures, "--model", tmp_path / model, "--out", out, "--reasoning", "--max-new-tokens", 8)
        answers.append([row["reasoning"] for row in lines(out)])
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


def test_hostile_names_and_answers_reach_file_and_page_as_text(pictures, tmp_path, monkeypatch):
    name = '<img src=x onerror=alert(1)>\n"quoted", [bold].png'
    (pictures / "00.png").rename(pictures / name)
    texts = {
        "1e308": "<think>t</think><answer>1e308</answer>",
        "nan": "<think><script>alert(1)</script></think><answer>nan</answer>",
        "huge": f"<answer>{'9' * 5000}</answer>",
        "markup": "<answer><b>3</b></answer>",
        "beyond": "<answer>77</answer>",
    }
    monkeypatch.setattr(HawkeyeScorer, "__init__", fake_init(list(texts.values())))
    q_hawkeye("score", pictures, "--out", tmp_path / "s.jsonl", "--html", tmp_path / "s.html", "--rollouts", 5)
    rows = lines(tmp_path / "s.jsonl")
    assert str(pictures / name) in [row["image"] for row in rows]
    for row in rows:
        assert row["rollouts"] == [None, None, None, None, 77.0]
        assert (row["score"], row["clamped"], row["parse_rate"], row["error"]) == (5.0, 1, 0.2, None)
    page = (tmp_path / "s.html").read_text("utf-8")
    assert page.count("<script>") == 1
    assert "<img src=x" not in page


def fake_init(answers: list[str]):
    """A scorer whose policy says always the same."""

    def init(self, model, **options):
        self.batch_size, self.rollouts, self.question = 4, len(answers), Question()
        self.answer_batch = lambda images: [list(answers) for _ in images]

    return init


def test_an_image_that_is_replaced_meanwhile_is_not_reported_with_its_old_score(pictures, tmp_path, monkeypatch):
    whole = HawkeyeScorer.score_sources

    def replacing(self, sources, **options):
        yield from whole(self, sources, **options)
        Image.new("RGB", (64, 64), "red").save(pictures / "03.png")

    arguments = ("score", pictures, "--out", tmp_path / "s.jsonl", "--max-new-tokens", 32)
    with monkeypatch.context() as patched:
        patched.setattr(HawkeyeScorer, "score_sources", replacing)
        assert "changed during the run" in q_hawkeye(*arguments, status=1)
    assert "11 of 12 images" in q_hawkeye(*arguments)
    assert len(lines(tmp_path / "s.jsonl")) == 12


def test_two_outputs_are_two_files(pictures, tmp_path):
    out = tmp_path / "scores.jsonl"
    said = q_hawkeye("score", pictures, "--out", out, "--html", f"{tmp_path}/./scores.jsonl", status=1)
    assert "Two outputs would be written to" in said
    assert not out.exists()


def test_the_stamp_of_weights_follows_an_adapter_to_its_base(tmp_path):
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.safetensors").write_bytes(name.encode())
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base"), "r": 4}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    seen = {model_stamp(tmp_path / "base"), model_stamp(tmp_path / "adapter")}
    for name in ("base", "adapter"):
        os.utime(tmp_path / name / "w.safetensors", (1, 1))
        seen.add(model_stamp(tmp_path / "adapter"))
    assert len(seen) == 4
    assert model_stamp(tmp_path / "adapter") in seen
    assert model_stamp("someone/on-the-hub") == ""
