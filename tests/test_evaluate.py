"""`q-hawkeye evaluate` as a user runs it, and its page in a real browser."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

from q_hawkeye_trl.cli import app
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import content_seed, draw_sample
from q_hawkeye_trl.evaluation.score_tables import read_tables

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NAMES = ("plcc", "plcc_fitted", "srcc", "krcc", "rmse", "mae")


def run(*arguments) -> object:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def write_scores(path: Path, count: int = 80, seed: int = 0, **columns) -> Path:
    rng = np.random.default_rng(seed)
    quality = np.random.default_rng(9).uniform(1.2, 4.8, size=count)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "score", "mos", "spread", *columns])
        for i in range(count):
            score = "" if i in (3, 40) else f"{np.clip(quality[i] + 0.4 * rng.normal(), 1, 5):.2f}"
            writer.writerow(
                [f"{i:03}.png", score, f"{quality[i]:.3f}", f"{rng.uniform(0.1, 1):.3f}"]
                + [values[i % len(values)] for values in columns.values()]
            )
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder as `q-hawkeye prepare` leaves it: synthetic pictures, three of each content, one broken."""
    splits = {}
    for split, use, contents in (("train", "training", 2), ("test", "test", 4)):
        rows = []
        for content in range(contents):
            for view in range(3):
                sample = draw_sample(content_seed(use, 3, 10 * content + view))
                rows.append(
                    {
                        "image": Image.fromarray(sample.picture),
                        "image_id": f"{split}-{content}-{view}.png",
                        "dataset": "synthetic",
                        "reference": f"content-{content}",
                        "distortion": sample.kind,
                        "mos": sample.quality,
                        "mos_raw": 5 - sample.quality,
                        "mos_direction": "lower",
                    }
                )
        splits[split] = Dataset.from_list(rows)
    folder = tmp_path_factory.mktemp("prepared") / "set"
    DatasetDict(splits).save_to_disk(folder)
    return folder


def test_scores_in_all_forms(tmp_path):
    file = write_scores(tmp_path / "koniq10k.csv", distortion=("blur", "noise"))
    other = write_scores(tmp_path / "other.csv", seed=5)
    outputs = {form: tmp_path / f"out.{form}" for form in ("json", "md", "html")}
    result = run(
        "--scores",
        file,
        "--compare",
        other,
        "--published",
        "--draws",
        30,
        "--json",
        outputs["json"],
        "--markdown",
        outputs["md"],
        "--html",
        outputs["html"],
    )
    assert result.exit_code == 0
    figures = json.loads(outputs["json"].read_text())["koniq10k"]
    (table,) = read_tables(file)
    known = ~np.isnan(table.score)
    assert figures["srcc"] == pytest.approx(stats.spearmanr(table.score[known], table.mos[known]).statistic)
    assert figures["coverage"] == 78 / 80
    assert all(f"{name}_{end}" in figures for name in NAMES for end in ("low", "high"))
    assert figures["comparison"]["other"] == "other"
    assert f"{figures['srcc']:.3f}" in result.stdout
    assert f"{figures['srcc']:.3f}" in outputs["md"].read_text()
    page = outputs["html"].read_text()
    assert "Quoted, not measured here" in page
    assert page.count("data:image/svg+xml;base64,") == 3
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_the_same_command_gives_the_same_files(tmp_path):
    file = write_scores(tmp_path / "set.csv")
    for name in ("one", "two"):
        run("--scores", file, "--draws", 20, "--json", tmp_path / f"{name}.json", "--html", tmp_path / f"{name}.html")
    for form in ("json", "html"):
        assert (tmp_path / f"one.{form}").read_bytes() == (tmp_path / f"two.{form}").read_bytes()


def test_several_files_and_scales(tmp_path):
    first = write_scores(tmp_path / "first.csv")
    second = tmp_path / "second.jsonl"
    rows = [{"image_id": i, "score": 20 + i, "mos": (20 + i) / 100} for i in range(30)]
    second.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.json"
    result = run("--scores", second, "--score-range", 0, 100, "--mos-range", 0, 1, "--draws", 5, "--json", out)
    assert result.exit_code == 0
    figures = json.loads(out.read_text())["second"]
    assert figures["rmse"] == pytest.approx(0, abs=1e-9)
    result = run("--scores", first, write_scores(tmp_path / "third.csv", seed=1), "--draws", 5)
    assert "first: 80 images" in result.stdout
    assert "third: 80 images" in result.stdout


def test_a_model_scores_prepared_data(prepared, tmp_path):
    out, html, scores = (tmp_path / name for name in ("out.json", "out.html", "scores.jsonl"))
    result = run(
        "--model",
        demo_policy_path(),
        "--data",
        prepared,
        "--draws",
        20,
        "--rollouts",
        4,
        "--max-new-tokens",
        24,
        "--json",
        out,
        "--html",
        html,
        "--out",
        scores,
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())["synthetic"]
    assert (figures["images"], figures["units"], figures["resampled"]) == (12, 4, "group")
    assert figures["srcc"] > 0.6  # the toy sees these distortions
    assert figures["spread"]["mean"] > 0
    assert set(figures["by_group"]) == {f"content-{i}" for i in range(4)}
    page = html.read_text()
    assert page.count("data:image/jpeg;base64,") == 12
    assert "4 rollouts" in page
    again = tmp_path / "again.json"
    assert run("--scores", scores, "--draws", 20, "--json", again).exit_code == 0
    repeated = json.loads(again.read_text())["synthetic"]
    assert {name: repeated[name] for name in NAMES} == {name: figures[name] for name in NAMES}
    assert not list(tmp_path.glob("*.partial"))


def test_scores_are_those_of_the_scorer(prepared, tmp_path):
    from q_hawkeye_trl.scoring.scorer import HawkeyeScorer

    scores = tmp_path / "scores.jsonl"
    run("--data", prepared, "--split", "train", "--draws", 5, "--max-new-tokens", 24, "--out", scores)
    rows = {row["image_id"]: row for row in map(json.loads, scores.read_text().splitlines())}
    data = DatasetDict.load_from_disk(str(prepared))["train"]
    scored = HawkeyeScorer(demo_policy_path(), max_new_tokens=24).score(list(data["image"]))
    assert [rows[name]["score"] for name in data["image_id"]] == [each.score for each in scored]
    assert [rows[name]["mos"] for name in data["image_id"]] == list(data["mos"])


def test_a_preset_chooses_split_and_labels(prepared, tmp_path):
    folder = tmp_path / "kadid"
    data = DatasetDict.load_from_disk(str(prepared))
    data = data.map(lambda row: {**row, "dataset": "kadid10k"})
    data.save_to_disk(folder)
    for preset, images in (("deqa", 12), ("mr-iqa", 18)):
        out = tmp_path / f"{preset}.json"
        options = ("--draws", 5, "--max-new-tokens", 24, "--json", out)
        assert run("--data", folder, "--preset", preset, *options).exit_code == 0
        figures = json.loads(out.read_text())["kadid10k"]
        assert figures["images"] == images
        assert figures["target"] == ("mos_raw" if preset == "deqa" else "mos")
        assert "different test set" in figures["warnings"][0]


def test_an_interrupted_run_goes_on(prepared, tmp_path, monkeypatch):
    from q_hawkeye_trl.scoring.scorer import HawkeyeScorer

    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    options = ("--data", prepared, "--draws", 5, "--max-new-tokens", 24, "--batch-size", 4)
    run(*options, "--out", whole)
    plain = HawkeyeScorer.score_sources
    seen = []

    def dies(self, sources, *, wanted=None, **others):
        for number, scored in plain(self, sources, wanted=wanted, **others):
            if len(seen) == 5:
                raise KeyboardInterrupt
            seen.append(number)
            yield number, scored

    monkeypatch.setattr(HawkeyeScorer, "score_sources", dies)
    assert run(*options, "--out", broken).exit_code == 130
    assert not broken.exists()

    def goes_on(self, sources, *, wanted=None, **others):
        assert sorted(wanted) == sorted(set(range(12)) - set(seen))
        yield from plain(self, sources, wanted=wanted, **others)

    monkeypatch.setattr(HawkeyeScorer, "score_sources", goes_on)
    assert run(*options, "--out", broken).exit_code == 0
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_two_processes_give_the_file_of_one(prepared, tmp_path):
    options = ["evaluate", "--data", str(prepared), "--draws", "5", "--max-new-tokens", "24", "--batch-size", "4"]
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert run(*options[1:], "--out", one).exit_code == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", "-m", "q_hawkeye_trl", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*command, "--out", str(two)], capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    assert two.read_bytes() == one.read_bytes()
    assert done.stdout.count("wrote") == 1


def test_unfinished_scores_of_other_options_or_weights(prepared, tmp_path, monkeypatch):
    """They are refused by name, and `--overwrite`, which the message advises, starts over."""
    from q_hawkeye_trl.scoring.scorer import HawkeyeScorer

    model = tmp_path / "model"
    shutil.copytree(demo_policy_path(), model)
    out = tmp_path / "out.jsonl"
    options = ("--model", model, "--data", prepared, "--draws", 5, "--batch-size", 4, "--out", out)
    plain = HawkeyeScorer.score_sources

    def dies(self, sources, **others):
        yield next(plain(self, sources, **others))
        raise KeyboardInterrupt

    monkeypatch.setattr(HawkeyeScorer, "score_sources", dies)
    assert run(*options, "--max-new-tokens", 24).exit_code == 130
    monkeypatch.setattr(HawkeyeScorer, "score_sources", plain)
    with pytest.raises(ValueError, match=r"max_new_tokens 24, now 25.*--overwrite"):
        run(*options, "--max-new-tokens", 25)
    os.utime(model / "model.safetensors", (1, 1))
    with pytest.raises(ValueError, match=r"weights '\w{16}', now '\w{16}'"):
        run(*options, "--max-new-tokens", 24)
    result = run(*options, "--max-new-tokens", 25, "--overwrite")
    assert result.exit_code == 0
    assert "from before" not in result.stderr
    assert len(out.read_text().splitlines()) == 12
    assert not list(tmp_path.glob("*.partial"))


def test_wrong_labels_and_comparisons_are_told_before_anything_is_scored(prepared, tmp_path, monkeypatch):
    from q_hawkeye_trl.scoring.scorer import HawkeyeScorer

    monkeypatch.setattr(HawkeyeScorer, "score_sources", lambda *_, **__: pytest.fail("scored"))
    other = write_scores(tmp_path / "other.csv")
    with pytest.raises(ValueError, match="synthetic"):
        run("--data", prepared, "--compare", other)
    with pytest.raises(ValueError, match=r"test-0-0\.png"):
        run("--data", prepared, prepared)
    wrong = DatasetDict.load_from_disk(str(prepared))["test"].map(lambda row: {"mos": row["mos"] * 20})
    wrong.save_to_disk(tmp_path / "wrong")
    with pytest.raises(ValueError, match=r"12 of 12.*mos"):
        run("--data", tmp_path / "wrong")


def test_an_unreadable_image_is_reported_and_the_rest_goes_on(tmp_path):
    sample = draw_sample(content_seed("test", 3, 1))
    for name in ("a", "b"):
        Image.fromarray(sample.picture).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    rows = Dataset.from_dict(
        {"image": [str(tmp_path / f"{n}.png") for n in "ab"], "image_id": ["a", "b"], "mos": [3.0, 2.0]}
    )
    rows.cast_column("image", ImageFeature()).save_to_disk(tmp_path / "set")
    out = tmp_path / "out.json"
    result = run(
        "--data", tmp_path / "set", "--draws", 5, "--max-new-tokens", 24, "--json", out, "--html", tmp_path / "o.html"
    )
    assert result.exit_code == 3
    assert "1 of 2 images could not be read" in result.output
    assert json.loads(out.read_text())["set"]["coverage"] == 0.5
    assert "(b): " in (tmp_path / "o.html").read_text()


ERRORS = {
    "nothing": ([], "--scores FILE"),
    "both": (["--scores", "{file}", "--data", "x"], "--scores FILE"),
    "model with scores": (["--scores", "{file}", "--model", "m"], "--scores needs no --model"),
    "out with scores": (["--scores", "{file}", "--out", "o.jsonl"], "--scores needs no --out"),
    "idle options": (
        ["--scores", "{file}", "--rollouts", "4", "--batch-size", "64", "--trust-remote-code"],
        "--scores needs no --rollouts, --batch-size, --trust-remote-code",
    ),
    "scale with data": (["--data", "d", "--score-range", "0", "1"], "--score-range"),
    "one output twice": (["--scores", "{file}", "--json", "o", "--html", "./o"], "./o"),
    "unknown preset": (["--scores", "{file}", "--preset", "paper"], "deqa, pyiqa, mr-iqa"),
    "missing file": (["--scores", "nothing.csv"], "nothing.csv"),
    "missing folder": (["--data", "nowhere"], "nowhere"),
    "existing output": (["--scores", "{file}", "--json", "{file}"], "is not overwritten"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_bad_arguments(tmp_path, arguments, message):
    file = write_scores(tmp_path / "set.csv")
    with pytest.raises((ValueError, OSError), match=message):
        run(*(argument.format(file=file) for argument in arguments))


def test_the_command_line_ends_in_a_message(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "q_hawkeye_trl", "evaluate", "--scores", "nothing.csv"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("q-hawkeye: There is no file nothing.csv")


def test_scores_need_no_torch(tmp_path):
    """Statistics of a file should not wait for torch to load."""
    file = write_scores(tmp_path / "set.csv")
    code = (
        "import sys\nfrom q_hawkeye_trl.cli import app\n"
        f"app(['evaluate', '--scores', {str(file)!r}, '--draws', '2'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
BROWSER += ["--disable-background-networking", "--disable-component-update"]
ATTACK = '"><img src=x onerror="document.title=1"><script>document.title=2</script><svg onload=document.title=3>'


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_headings_stand_above_their_columns(tmp_path, width):
    from playwright.sync_api import sync_playwright

    html = tmp_path / "out.html"
    kinds = {"distortion": ("blur", "a-long-kind-of-noise-without-a-break"), "group": [f"r{n:040}" for n in range(8)]}
    file = write_scores(tmp_path / "koniq10k.csv", **kinds)
    assert run("--scores", file, "--compare", file, "--published", "--draws", 5, "--html", html).exit_code == 0
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(html.as_uri())
        page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
        shown = page.locator("section:not(#images) tr").evaluate_all(
            "rows => rows.map(row => [...row.children].filter(cell => cell.offsetWidth > 0).length)"
        )
        tables = page.locator("section:not(#images) table").evaluate_all(
            "tables => tables.map(table => [...table.rows].map(row => row.cells.length))"
        )
        wide = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert wide <= width  # only a table moves sideways, by itself
    assert len(tables) == 6  # figures, quoted, spread, comparison, distortions, references
    assert shown == [count for table in tables for count in table]
    assert all(len(set(table)) == 1 for table in tables)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_markup_never_runs_in_a_browser(tmp_path):
    from playwright.sync_api import sync_playwright

    path = tmp_path / "set.jsonl"
    rows = [
        {
            "image_id": f"{i}{ATTACK}",
            "score": None if i == 0 else 1 + i % 4,
            "mos": 1 + (i * 7) % 5 * 0.8,
            "group": f"{i % 5}{ATTACK}",
            "distortion": f"{i % 3}{ATTACK}",
            "dataset": f"set{ATTACK}",
            "answer": f"<think>{ATTACK}</think><answer>1e308</answer>",
            "error": ATTACK if i == 0 else None,
            "image": f"javascript:{ATTACK}",
            "spread": i / 30,
        }
        for i in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = tmp_path / f"other{ATTACK.replace('/', '')}.jsonl"
    other.write_text(path.read_text())
    html = tmp_path / "out.html"
    assert run("--scores", path, "--compare", other, "--draws", 5, "--html", html).exit_code == 0
    requests, dialogs = [], []
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("dialog", lambda dialog: dialogs.append(dialog.message))
        page.goto(html.as_uri())
        page.wait_for_timeout(300)
        assert page.title() == "Image quality evaluation"
        assert page.locator("h2").first.inner_text() == f"set{ATTACK}"
        assert page.locator("script").count() == 1
        assert page.locator("[onerror], [onload]").count() == 0
        assert page.locator("#gallery tbody tr").count() == 30
        assert ATTACK in page.locator("#gallery").inner_text()
        images = page.locator("section img")
        loaded = images.evaluate_all("images => images.map(image => image.naturalWidth > 0)")
        assert loaded
        assert all(loaded)  # the plots are drawn although the page may load nothing
        browser.close()
    assert dialogs == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
