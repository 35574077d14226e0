"""The vLLM backend up to the engine itself, which is replaced by a class with its methods."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from q_hawkeye_trl.scoring.scorer import HawkeyeScorer
from q_hawkeye_trl.text import QUALITY_PROMPT
from test_policy import adapter
from tiny_models import save_policy

IMAGES = [Image.new("RGB", (56, 56), color) for color in ("red", "green", "blue")]


class Engine:
    """`vllm.LLM`, as far as the backend uses it: answers with a score that tells the image and the rollout."""

    def __init__(self, **options):
        self.options = options
        self.calls: list[SimpleNamespace] = []

    def generate(self, prompts, sampling_params, *, lora_request, use_tqdm):
        assert len(prompts) == len(sampling_params)
        self.calls.append(SimpleNamespace(prompts=prompts, sampling=sampling_params, lora=lora_request))
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(text=f"<answer>{1 + image.getpixel((0, 0))[0] / 255 + number / 10:.2f}</answer>")
                    for number in range(sampling["n"])
                ]
            )
            for image, sampling in zip(
                [prompt["multi_modal_data"]["image"] for prompt in prompts], sampling_params, strict=True
            )
        ]


@pytest.fixture
def engines(monkeypatch):
    """Puts a `vllm` in place; returns the engines that are made."""
    made: list[Engine] = []

    def build(**options):
        made.append(Engine(**options))
        return made[-1]

    vllm, lora = ModuleType("vllm"), ModuleType("vllm.lora.request")
    vllm.LLM, vllm.SamplingParams = build, lambda **options: options
    lora.LoRARequest = lambda name, number, path: (name, number, path)
    for name, module in (("vllm", vllm), ("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", lora)):
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return save_policy("qwen2_5_vl", tmp_path_factory.mktemp("base"))


def test_greedy(engines, base):
    scores = HawkeyeScorer(base, backend="vllm", max_new_tokens=77)(IMAGES)
    assert scores == [2.0, 1.0, 1.0]
    (engine,) = engines
    assert engine.options["model"] == base
    assert "enable_lora" not in engine.options
    (call,) = engine.calls
    assert [prompt["multi_modal_data"]["image"].getpixel((0, 0)) for prompt in call.prompts] == [
        image.getpixel((0, 0)) for image in IMAGES
    ]
    assert all(QUALITY_PROMPT in prompt["prompt"] for prompt in call.prompts)
    assert all(prompt["prompt"].count("<|image_pad|>") == 1 for prompt in call.prompts)
    for sampling in call.sampling:
        assert (sampling["temperature"], sampling["n"], sampling["max_tokens"]) == (0.0, 1, 77)
        assert (sampling["repetition_penalty"], sampling["top_p"], sampling["top_k"]) == (1.0, 1.0, 0)


def test_rollouts_have_a_seed_of_the_image(engines, base):
    scored = HawkeyeScorer(base, backend="vllm", rollouts=3, seed=5).score(IMAGES)
    assert scored[0].rollouts == (2.0, 2.1, 2.2)
    again = HawkeyeScorer(base, backend="vllm", rollouts=3, seed=5).score(IMAGES[::-1])
    assert again[::-1][0].rollouts == scored[0].rollouts
    seeds = [[sampling["seed"] for sampling in engine.calls[0].sampling] for engine in engines]
    assert seeds[0] == seeds[1][::-1]  # by image, not by place
    assert len(set(seeds[0])) == 3
    assert {(sampling["n"], sampling["temperature"]) for sampling in engines[0].calls[0].sampling} == {(3, 1.0)}
    HawkeyeScorer(base, backend="vllm", rollouts=3, seed=6).score(IMAGES)
    assert [sampling["seed"] for sampling in engines[2].calls[0].sampling] != seeds[0]


def test_an_adapter_runs_over_its_base(engines, base, tmp_path):
    adapter("qwen2_5_vl", base, tmp_path / "adapter")
    HawkeyeScorer(tmp_path / "adapter", backend="vllm").score(IMAGES)
    (engine,) = engines
    assert engine.options["model"] == base
    assert (engine.options["enable_lora"], engine.options["max_lora_rank"]) == (True, 4)
    assert engine.calls[0].lora == ("adapter", 1, str(tmp_path / "adapter"))


def test_options_reach_the_engine(engines, base):
    HawkeyeScorer(
        base, backend="vllm", dtype="bfloat16", max_pixels=9999, engine_options={"gpu_memory_utilization": 0.5}
    )
    options = engines[0].options
    assert options["dtype"] == "bfloat16"
    assert options["mm_processor_kwargs"] == {"max_pixels": 9999}
    assert options["gpu_memory_utilization"] == 0.5
    assert options["trust_remote_code"] is False


def test_without_vllm_the_message_says_what_to_do(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="vllm"):
        HawkeyeScorer(base, backend="vllm")


def test_a_loaded_model_is_refused(engines):
    from tiny_models import tiny_policy

    with pytest.raises(ValueError, match="vLLM"):
        HawkeyeScorer(*tiny_policy(), backend="vllm")


def test_engine_options_are_vllms(base):
    with pytest.raises(ValueError, match="engine_options"):
        HawkeyeScorer(base, engine_options={"seed": 1})
