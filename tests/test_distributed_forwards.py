"""Every rank runs the same number of forwards, whatever its rows: otherwise it would wait for the others."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import distributed_cases as cases
from distributed_strays import IMAGES_ON_ONE_RANK, STRAYS
from launch import in_processes
from q_hawkeye_trl.guards import check_images_alike
from test_distributed import WRAPPERS
from tiny_models import tiny_image

BACKENDS = ("DDP", "ZeRO-3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("strays")
    cases.prepare(folder)
    return folder


@pytest.fixture(scope="module", params=BACKENDS)
def ranks(request, folder) -> tuple[str, list[dict[str, dict]]]:
    in_processes("strays", folder, request.param, *STRAYS, timeout=240)
    return request.param, [
        torch.load(folder / f"{request.param}-strays-{rank}.pt", weights_only=True) for rank in (0, 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", STRAYS)
def test_ranks_run_the_same_forwards(ranks, name):
    backend, (first, second) = ranks[0], [rank[name] for rank in ranks[1]]
    for seen in (first, second):
        assert seen["world_size"] == 2
        assert seen["wrapper"] == WRAPPERS[backend]
    assert first["collectives"] == second["collectives"] > 0
    # without shards a rank generates alone, until its own answers end
    parts = ("vision",) if backend == "DDP" and "sampled" in name else ("policy", "decoder", "vision")
    for phase in ("training", *(["evaluation"] if "evaluation" in name else [])):
        for part in parts:
            assert first[phase][part] == second[phase][part] > 0


@pytest.mark.slow
def test_the_ranks_do_differ(ranks):
    """The differences between the ranks exist."""
    steps = {name: first["steps"] for name, first in ranks[1][0].items()}
    assert all(line["perception/rows_without_view"] == 4 for line in steps["one rank without degraded views"])
    assert all(line["scores/parse_rate"] == 0.5 for line in steps["one rank without a score"])
    assert {line["completions/min_length"] for line in steps["one rank says nothing"]} == {1}
    assert all(line["completions/clipped_ratio"] == 0.5 for line in steps["one rank cut off and masked"])
    assert [line["perception/gamma"] > 0 for line in steps["gamma ends in mid-epoch"]] == [True, True, False, False]
    views = ["perception/kl" in line for line in steps["gamma ends in mid-epoch"]]
    assert views == [True, True, False, False]
    # a window keeps the views that it began with
    assert all("perception/kl" in line for line in steps["gamma ends within a generation window"])
    if ranks[0] == "DDP":
        lengths = [rank["sampled lengths"]["training"]["decoder"] for rank in ranks[1]]
        assert lengths[0] != lengths[1]


@pytest.mark.slow
def test_images_on_one_rank_are_refused_on_all(folder):
    """They would leave the other rank's vision tower out of the forward: no gradient bucket or shard ever comes."""
    _, errors = in_processes("strays", folder, "DDP", IMAGES_ON_ONE_RANK, timeout=120, fails=True)
    assert "4 of the 8 rollouts of a batch belong to rows without an image" in errors
    assert "Timed out" not in errors


WITH = {
    "a column": {"image": tiny_image()},
    "a list": {"images": [tiny_image()]},
    "the prompt": {"prompt": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]},
}
WITHOUT = {
    "an empty column": {"image": None},
    "an empty list": {"images": []},
    "a text": {"prompt": [{"role": "user", "content": "Rate."}]},
    "a plain text": {"prompt": "Rate."},
}


def accelerator_beside(other: list[bool], processes: int = 2) -> SimpleNamespace:
    """An accelerator with another rank that has rows with or without images."""
    return SimpleNamespace(
        num_processes=processes, device="cpu", gather=lambda own: torch.cat([own, torch.tensor(other)])
    )


@pytest.mark.parametrize("name", [*WITH, *WITHOUT])
def test_a_row_has_images_wherever_they_are(name):
    row, shows = {**WITH, **WITHOUT}[name], name in WITH
    check_images_alike([row, row], accelerator_beside([shows, shows]))
    with pytest.raises(ValueError, match=r"2 of the 4 .* 2 processes"):
        check_images_alike([row, row], accelerator_beside([not shows, not shows]))


def test_one_process_may_mix_rows():
    check_images_alike([WITH["a column"], WITHOUT["an empty column"]], accelerator_beside([], processes=1))
