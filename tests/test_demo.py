import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from scipy import fft, stats
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from q_hawkeye_trl.data.koniq import load_koniq
from q_hawkeye_trl.demo import build, synthetic
from q_hawkeye_trl.demo.answers import ANSWER_STD, KIND_NAMES, LEVELS, answer, rater_score
from q_hawkeye_trl.demo.architecture import build_processor, cosine_filters
from q_hawkeye_trl.demo.contents import IMAGE_SIZE, draw_content
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import (
    CONTENT_SEEDS,
    IMAGE_FOLDER,
    LABEL_FILE,
    SEEN_KINDS,
    TRUTH_FILE,
    UNSEEN_KINDS,
    content_seed,
    distort,
    draw_sample,
    label_row,
    simulate_ratings,
    true_quality,
    write_synthetic_koniq,
)
from q_hawkeye_trl.demo.training import Pool
from q_hawkeye_trl.text import QUALITY_PROMPT, has_answer_format, parse_score, quality_messages


def _write(root, train=5, validation=3, test=4, **options):
    return write_synthetic_koniq(root, train=train, validation=validation, test=test, progress=False, **options)


def _rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("set") / "koniq", train=40, validation=6, test=10)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(demo_policy_path())


@pytest.fixture(scope="module")
def provenance():
    return json.loads((demo_policy_path() / "provenance.json").read_text(encoding="utf-8"))


# Contents and distortions


def test_contents_are_seeded_distinct_and_well_exposed():
    pictures = [draw_content(seed) for seed in range(20)]
    for seed, picture in enumerate(pictures):
        assert picture.shape == (IMAGE_SIZE[1], IMAGE_SIZE[0], 3)
        assert picture.dtype == np.uint8
        assert 90 < picture.mean() < 165
        np.testing.assert_array_equal(picture, draw_content(seed))
    assert len({picture.tobytes() for picture in pictures}) == 20


@pytest.mark.parametrize("kind", SEEN_KINDS + UNSEEN_KINDS)
def test_distortions_grow_with_severity(kind):
    errors = []
    for severity in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        pairs = [(draw_content(seed), np.random.default_rng(seed)) for seed in range(4)]
        errors.append(np.mean([np.abs(distort(p, kind, severity, r) - p.astype(float)).mean() for p, r in pairs]))
    assert errors[0] == 0
    assert errors == sorted(set(errors))


@pytest.mark.parametrize(("kind", "severity"), [("unknown", 0.5), ("jpeg", -0.1), ("jpeg", 1.1), ("jpeg", math.nan)])
def test_unknown_distortions_are_refused(kind, severity):
    with pytest.raises(ValueError, match=r"kind|severity"):
        distort(draw_content(0), kind, severity, np.random.default_rng(0))


def test_quality_falls_from_5_to_1():
    qualities = [true_quality(severity) for severity in np.linspace(0, 1, 101)]
    assert qualities[0] == 5
    assert qualities[-1] == 1
    assert qualities == sorted(qualities, reverse=True)


# Held-out means held out


def test_seen_and_unseen_kinds_share_nothing():
    assert SEEN_KINDS == ("gaussian_noise", "gaussian_blur", "jpeg", "darken")
    assert not set(SEEN_KINDS) & set(UNSEEN_KINDS)
    assert len(UNSEEN_KINDS) == 4
    assert set(KIND_NAMES) == set(SEEN_KINDS)  # no answer names an unseen kind


def test_content_seeds_of_different_uses_are_disjoint():
    ranges = sorted(CONTENT_SEEDS.values(), key=lambda seeds: seeds.start)
    assert set(CONTENT_SEEDS) == {"training", "validation", "test", "pretraining"}
    assert all(before.stop <= after.start for before, after in itertools.pairwise(ranges))
    corners = [(use, seed, index) for use in CONTENT_SEEDS for seed in (0, 1, 99) for index in (0, 1, 99_999)]
    assert len({content_seed(*corner) for corner in corners}) == len(corners)
    assert all(content_seed(*corner) in CONTENT_SEEDS[corner[0]] for corner in corners)


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (100, 0), (0, -1), (0, 100_000)])
def test_content_seeds_out_of_range_are_refused(seed, index):
    with pytest.raises(ValueError, match=r"lies in|at most"):
        content_seed("test", seed, index)


def test_pool_draws_pretraining_contents_and_seen_kinds_alone(monkeypatch):
    seeds, kinds = [], []
    monkeypatch.setattr("q_hawkeye_trl.demo.training.draw_content", lambda seed: seeds.append(seed) or draw_content(0))
    monkeypatch.setattr(
        "q_hawkeye_trl.demo.training.distort", lambda picture, kind, *rest: kinds.append(kind) or picture
    )
    pool = Pool(20, 7, False)
    assert seeds == [content_seed("pretraining", 7, index) for index in range(20)]
    assert set(kinds) == set(SEEN_KINDS)
    assert pool.pictures.shape == (60, 3, 84, 112)
    assert [SEEN_KINDS[kind] for kind in pool.kinds] == kinds
    assert pool.quality.min() >= 1
    assert pool.quality.max() <= 5


def test_provenance_of_the_bundled_policy_names_seen_kinds_and_other_contents(provenance):
    assert provenance["kinds"] == list(SEEN_KINDS)
    assert not any(kind in json.dumps(provenance) for kind in UNSEEN_KINDS)
    assert provenance["settings"] == build.SETTINGS
    assert provenance["answer_std"] == ANSWER_STD
    assert set(provenance["content_seeds"]) == {"pretraining", "validation"}
    for use, bounds in provenance["content_seeds"].items():
        assert all(bound in CONTENT_SEEDS[use] for bound in bounds)
    assert set(provenance["versions"]) == {"python", "torch", "transformers", "numpy"}


# Ratings and labels


def test_ratings_follow_quality():
    means = []
    for quality in (1, 2, 3, 4, 5):
        counts = sum(simulate_ratings(quality, np.random.default_rng(seed)) for seed in range(50))
        means.append(float(counts @ np.arange(1, 6) / counts.sum()))
    assert means == sorted(means)
    assert means[2] == pytest.approx(3, abs=0.05)
    assert means[0] == pytest.approx(6 - means[4], abs=0.05)
    assert 90 <= simulate_ratings(3, np.random.default_rng(0)).sum() <= 110


def test_label_row_against_hand_counts():
    row = label_row("a.png", np.array([1, 0, 2, 0, 1]), "test")  # ratings 1, 3, 3, 5
    assert [float(row[f"c{k}"]) for k in range(1, 6)] == [0.25, 0, 0.5, 0, 0.25]
    assert row["c_total"] == 4
    assert float(row["MOS"]) == 50
    assert float(row["SD"]) == pytest.approx(math.sqrt(8 / 3))


# The set on disk


def test_layout_is_koniqs(written):
    text = (written / LABEL_FILE).read_text(encoding="utf-8")
    assert text.startswith("image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set\n")
    rows = _rows(written / LABEL_FILE)
    assert [row["set"] for row in rows] == ["training"] * 40 + ["validation"] * 6 + ["test"] * 10
    assert {row["image_name"] for row in rows} == {path.name for path in (written / IMAGE_FOLDER).iterdir()}
    for row in rows:
        shares = [float(row[f"c{k}"]) for k in range(1, 6)]
        mean = sum(k * share for k, share in zip(range(1, 6), shares, strict=True))
        assert sum(shares) == pytest.approx(1, abs=1e-9)
        assert float(row["MOS"]) == pytest.approx(25 * (mean - 1), abs=1e-6)
        deviations = sum(share * (k - mean) ** 2 for k, share in zip(range(1, 6), shares, strict=True))
        total = int(row["c_total"])
        assert float(row["SD"]) == pytest.approx(math.sqrt(deviations * total / (total - 1)), abs=1e-6)
        assert int(row["image_name"][:8]) in CONTENT_SEEDS[row["set"]]


def test_the_projects_reader_reads_it(written):
    rows = {split: load_koniq(written, split) for split in ("training", "validation", "test")}
    counts = {split: len(part) for split, part in rows.items()}
    assert sum(counts.values()) == 56
    mos = np.concatenate([np.asarray(part["mos"]) for part in rows.values()])
    assert mos.min() == pytest.approx(1)
    assert mos.max() == pytest.approx(5)
    labels = _rows(written / LABEL_FILE)
    raw = np.array([sum(k * float(row[f"c{k}"]) for k in range(1, 6)) for row in labels])
    np.testing.assert_allclose(np.sort(mos), np.sort(1 + 4 * (raw - raw.min()) / np.ptp(raw)), atol=1e-6)


def test_labels_follow_the_truth(written):
    labels, truths = _rows(written / LABEL_FILE), _rows(written / TRUTH_FILE)
    assert [row["image_name"] for row in labels] == [row["image_name"] for row in truths]
    assert {row["kind"] for row in truths} == set(SEEN_KINDS)
    mos, quality = [float(row["MOS"]) for row in labels], [float(row["quality"]) for row in truths]
    assert stats.spearmanr(mos, quality).statistic > 0.98
    for row in truths[:3]:
        picture = np.asarray(Image.open(written / IMAGE_FOLDER / row["image_name"]))
        sample = draw_sample(int(row["image_name"][:8]))
        np.testing.assert_array_equal(picture, sample.picture)
        assert (row["kind"], float(row["severity"])) == (sample.kind, pytest.approx(sample.severity, abs=1e-6))


def test_equal_seeds_give_equal_files_and_others_do_not(tmp_path):
    first, second, other = _write(tmp_path / "a"), _write(tmp_path / "b"), _write(tmp_path / "c", seed=1)
    assert _contents(first) == _contents(second)
    assert not set(_contents(first)) & {f"{IMAGE_FOLDER}/{path.name}" for path in (other / IMAGE_FOLDER).iterdir()}


def test_a_complete_set_is_used_again(tmp_path, monkeypatch):
    root = _write(tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(synthetic, "draw_sample", None)  # drawing anything would fail
    assert _write(root) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("options", [{"seed": 1}, {"train": 6}, {"kinds": UNSEEN_KINDS}])
def test_another_set_is_not_overwritten(tmp_path, options):
    root = _write(tmp_path / "set")
    before = _contents(root)
    with pytest.raises(FileExistsError, match="other"):
        _write(root, **options)
    assert _contents(root) == before


def test_a_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(FileExistsError, match=str(place)):
            _write(place)
    assert _contents(tmp_path) == {"thesis.txt": b"precious"}


@pytest.mark.parametrize("damage", ["missing image", "changed image", "changed label", "further image"])
def test_a_damaged_set_is_refused(tmp_path, damage):
    root = _write(tmp_path / "set")
    image = next((root / IMAGE_FOLDER).iterdir())
    if damage == "missing image":
        image.unlink()
    elif damage == "further image":
        (image.parent / "other.png").write_bytes(image.read_bytes())
    else:
        path = image if damage == "changed image" else root / LABEL_FILE
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(FileExistsError, match="damaged"):
        _write(root)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def failing(seed, kinds):
        if seed >= CONTENT_SEEDS["test"].start:
            raise KeyboardInterrupt
        return draw_sample(seed, kinds)

    monkeypatch.setattr(synthetic, "draw_sample", failing)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"kinds": ()}, {"kinds": ("jpeg", "rain")}, {"kinds": "jpeg"}, {"train": -1}, {"seed": 100}]
)
def test_bad_settings_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"kinds|sizes|seed"):
        _write(tmp_path / "set", **options)
    with pytest.raises(ValueError, match="sizes"):
        _write(tmp_path / "set", train=0, validation=0, test=0)
    assert list(tmp_path.iterdir()) == []


# Answers and tokens


def test_answers_parse_and_their_words_follow_the_score():
    order = []
    for score in np.arange(100, 501) / 100:
        text = answer("gaussian_blur", score)
        assert has_answer_format(text)
        assert parse_score(text) == pytest.approx(score)
        order.append(LEVELS.index(text.split(" ")[0].removeprefix("<think>")))
    assert order == sorted(order)
    assert set(order) == set(range(5))


def test_rater_scores_follow_the_truncated_normal():
    rng = np.random.default_rng(0)
    for quality in (1.0, 2.5, 5.0):
        scores = [rater_score(quality, rng) for _ in range(4000)]
        assert min(scores) >= 1
        assert max(scores) <= 5
        low, high = (1 - quality) / ANSWER_STD, (5 - quality) / ANSWER_STD
        expected = stats.truncnorm(low, high, loc=quality, scale=ANSWER_STD)
        assert stats.kstest(scores, expected.cdf).pvalue > 1e-3


def test_tokens_are_few_and_digits_single(processor):
    tokenizer = processor.tokenizer
    for kind in SEEN_KINDS:
        for score in (1.0, 1.9, 3.05, 4.0, 4.99):
            text = answer(kind, score)
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == 10
            assert tokenizer.decode(ids) == text
    assert len(tokenizer(QUALITY_PROMPT)["input_ids"]) < 25
    assert [tokenizer.decode([token]) for token in tokenizer("31.45")["input_ids"]] == list("31.45")


@pytest.mark.parametrize("text", ["Größe: 12 µm\n\tfoo  bar 漢字 🙂", "", " ", "<think>", "a<|im_end|>b"])
def test_any_text_survives_the_tokenizer(processor, text):
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text


def test_chat_template_takes_strings_and_blocks(processor):
    image = Image.new("RGB", IMAGE_SIZE)
    question = quality_messages()[0]["content"]
    blocks = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    render = processor.apply_chat_template
    assert render([{"role": "user", "content": blocks}], add_generation_prompt=True) == (
        f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert render(turns) == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


def test_a_fresh_processor_equals_the_bundled_one(processor):
    fresh = build_processor()
    assert fresh.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert fresh.chat_template == processor.chat_template
    assert fresh.tokenizer(QUALITY_PROMPT)["input_ids"] == processor.tokenizer(QUALITY_PROMPT)["input_ids"]


# The policy


def test_cosine_filters_are_a_discrete_cosine_transform():
    weight = cosine_filters(96)
    assert weight.shape == (96, 3, 2, 14, 14)
    assert not weight[95].any()
    image = torch.randn(14, 14, generator=torch.Generator().manual_seed(0))
    response = torch.einsum("fcthw,hw->f", weight, image)
    spectrum = fft.dctn(image.double().numpy(), norm="ortho")
    frequencies = (0, 1, 2, 3, 5, 7, 9, 11, 13)
    expected = [0.3 * (1 + math.hypot(u, v)) * spectrum[u, v] for u in frequencies for v in frequencies]
    np.testing.assert_allclose(response[:81].numpy(), expected, rtol=1e-4, atol=1e-4)
    assert response[81:].abs().max() < 1e-4  # a grey picture has no colour differences


def test_bundled_policy_is_a_small_plain_qwen(processor):
    path = demo_policy_path()
    model = AutoModelForImageTextToText.from_pretrained(path)
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert type(processor) is Qwen2_5_VLProcessor
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) < 1.5e6
    assert (path / "model.safetensors").stat().st_size < 6 * 2**20
    assert not list(path.glob("*.py")), "remote code"
    assert not [file for file in path.iterdir() if file.suffix in {".bin", ".pt", ".pkl"}], "pickles"
    config = model.config
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        token = f"<|{name.removesuffix('_token_id').replace('image', 'image_pad').replace('video', 'video_pad')}|>"
        assert getattr(config, name) == processor.tokenizer.convert_tokens_to_ids(token)
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_bundled_files_name_no_machine():
    for path in demo_policy_path().iterdir():
        if path.suffix in {".json", ".jinja"}:
            text = path.read_text(encoding="utf-8")
            assert "/tmp" not in text, path.name
            assert str(Path.home()) not in text, path.name
    with safe_open(demo_policy_path() / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.slow
def test_build_runs_is_seeded_and_overwrites_nothing(tmp_path):
    settings = {
        "contents": 8,
        "tower": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
        "answers": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "tower_learning_rate": 1e-4},
        "validation": 4,
    }
    before = torch.get_rng_state()
    for name in ("a", "b"):
        provenance = build.build_demo_policy(tmp_path / name, seed=2, settings=settings, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert provenance["content_seeds"]["pretraining"] == [30_200_000, 30_200_007]
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second
    AutoModelForImageTextToText.from_pretrained(tmp_path / "a")
    with pytest.raises(FileExistsError):
        build.build_demo_policy(tmp_path / "a", settings=settings, progress=False)
