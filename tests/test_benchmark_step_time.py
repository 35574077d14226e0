"""The step benchmark: its count of operations against loops, and one tiny point from end to end."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from step_flops import Cost, cost_of, flop_bound, packed_flops, rows_flops  # noqa: E402

COST = Cost(token=7, pair=3, head=11, image=1000)


def _reference_packed(cost: Cost, prompt: int, completion: int, group: int) -> int:
    total = cost.image
    for position in range(prompt - 1):
        total += cost.token + (position + 1) * cost.pair
    for _ in range(group):
        for step in range(completion):  # a segment opens with the prompt's last token
            total += cost.token + (prompt - 1 + step + 1) * cost.pair + cost.head
    return total


def _reference_rows(cost: Cost, prompt: int, completion: int, group: int) -> int:
    total = 0
    for _ in range(group):
        total += cost.image + completion * cost.head
        for position in range(prompt + completion):
            total += cost.token + (position + 1) * cost.pair
    return total


@pytest.mark.parametrize("point", [(5, 3, 2), (1, 4, 3), (30, 7, 8)])
def test_operations_equal_a_loop_over_tokens(point):
    assert packed_flops(COST, *point) == _reference_packed(COST, *point)
    assert rows_flops(COST, *point) == _reference_rows(COST, *point)
    assert flop_bound(COST, *point) == _reference_rows(COST, *point) / _reference_packed(COST, *point)


def test_bound_of_the_7b_is_about_six():
    text = SimpleNamespace(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    )
    vision = SimpleNamespace(
        depth=32,
        hidden_size=1280,
        out_hidden_size=3584,
        intermediate_size=3420,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=2,
        window_size=112,
        fullatt_block_indexes=[7, 15, 23, 31],
    )
    cost = cost_of(SimpleNamespace(text_config=text, vision_config=vision), patches=3480)
    assert cost.token == pytest.approx(2 * 6.5e9, rel=0.02)  # the 7B without its embeddings
    assert flop_bound(cost, 1024, 64, 8) == pytest.approx(6, abs=0.1)


@pytest.mark.slow
def test_one_point_runs_and_writes_its_figures(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "step_time.py"), "--prompt", "256", "--completion", "4"]
    command += ["--group", "2", "--repeats", "1", "--json", str(tmp_path / "point.json"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "of TRL's plain GRPO" in done.stdout
    result = json.loads((tmp_path / "point.json").read_text())
    variants = {"trl_grpo", "ours_grpo", "ours_hawkeye"}
    assert result["update_seconds"].keys() == result["peak_bytes"].keys() == variants
    assert result["preprocess_seconds"].keys() == {"trl", "ours"}
    assert all(value > 0 for value in result["update_seconds"].values())
    # generation (the prompt, then one token a rollout and step) and the loss: TRL runs the prompt for every rollout
    assert result["decoder_tokens"]["trl_grpo"] == 2 * (256 + 3) + 2 * (256 + 4)
    assert result["decoder_tokens"]["ours_grpo"] == 256 + 2 * 3 + 255 + 2 * 4
    assert result["decoder_tokens"]["ours_hawkeye"] == 256 + 2 * 3 + 2 * (255 + 2 * 4)
    assert 1 < result["flop_bound"] < 2
