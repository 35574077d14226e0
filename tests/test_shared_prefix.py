"""Trainings whose groups share the forward of their prompt, held against the same trainings row by row."""

import pytest
import torch
from datasets import concatenate_datasets
from peft import LoraConfig
from transformers import AutoModelForImageTextToText
from trl.data_utils import prepare_multimodal_messages

from harness import OFF, ON, Run, build_trainer, relative_difference, run
from q_hawkeye_trl import trl_compat
from q_hawkeye_trl.data.image_columns import UniformImage
from q_hawkeye_trl.objective.reduction import LOSS_TYPES
from tiny_models import save_policy, tiny_dataset, tiny_policy

GRADIENT_ONLY = {"optim": "sgd", "max_grad_norm": 0.0}
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
SHARING = ("qwen2_5_vl", "qwen3_vl", "smolvlm", "qwen2_vl", "llava", "internvl")
families = pytest.mark.parametrize(
    "family", [f if f in SHARING[:3] else pytest.param(f, marks=pytest.mark.slow) for f in SHARING]
)


def both(folder, *, family: str = "qwen2_5_vl", reference: bool = False, **options) -> tuple[Run, Run]:
    """The same training row by row and with shared prompts; `reference` gives it a model to stay near to."""

    def once(shared_prefix: str) -> Run:
        model, processor = tiny_policy(family)
        if reference:  # TRL loads the reference model from the policy's folder
            model = AutoModelForImageTextToText.from_pretrained(save_policy(family, folder / "policy"))
        settings = {"model": model, "processing_class": processor, **GRADIENT_ONLY} | options
        return run(folder / shared_prefix, shared_prefix=shared_prefix, **settings)

    return once("off"), once("on")


def assert_alike(plain: Run, shared: Run, tolerance: float = 1e-5) -> None:
    assert len(plain.gradients) == len(shared.gradients) > 0
    for ours, theirs in zip(shared.gradients, plain.gradients, strict=True):
        assert relative_difference(ours, theirs) < tolerance
    for ours, theirs in zip(shared.logs, plain.logs, strict=True):
        # TRL's and our means a token are means over micro-batches, so they depend on who is in which
        cut = plain.trainer.args.gradient_accumulation_steps > 1
        for key in {"loss"} if cut else theirs.keys() - {"step_time"}:
            assert ours[key] == pytest.approx(theirs[key], rel=10 * tolerance, abs=1e-6), key


@families
@pytest.mark.parametrize("gradient", ["both", "original"])
def test_loss_and_gradients_are_those_of_single_rows(tmp_path, family, gradient):
    on = ON | ({"entropy_degraded_coef": 0.0, "perception_gradient": "original"} if gradient == "original" else {})
    assert_alike(*both(tmp_path, family=family, reference=True, beta=0.04, **on))


@families
def test_generation_draws_the_same_rollouts(tmp_path, family):
    # with what the shuffle draws kept, 3 generations of 2 iterations each see the same random numbers
    options = {"scripted": None, "temperature": 0.7, "num_iterations": 2, "max_steps": 6}
    assert_alike(*both(tmp_path, family=family, **options, **ON))


@pytest.mark.slow
def test_twenty_sampled_steps_coincide(tmp_path):
    plain, shared = both(tmp_path, scripted=None, temperature=0.7, max_steps=20, learning_rate=0.1, **ON)
    assert_alike(plain, shared, 1e-4)
    assert relative_difference(shared.parameters, plain.parameters) < 1e-5
    start = dict(tiny_policy()[0].named_parameters())
    assert relative_difference(shared.parameters, {name: p.detach() for name, p in start.items()}) > 1e-3


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_type(tmp_path, loss_type):
    options = {"loss_type": loss_type, "epsilon_high": 5.0 if loss_type == "cispo" else 0.28}
    assert_alike(*both(tmp_path, **options, **ON))


@pytest.mark.parametrize("group_size", [2, 8, 16])
def test_every_group_size(tmp_path, group_size):
    options = {"num_generations": group_size, "per_device_train_batch_size": 16, "train_dataset": tiny_dataset(8)}
    assert_alike(*both(tmp_path, **options, **ON))


OPTIONS = {
    "a group a micro-batch": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    "old log-probabilities": {"per_device_train_batch_size": 4, "num_iterations": 2, "max_steps": 2},
    "lora": {"peft_config": LORA},
    "lora with a reference": {"peft_config": LORA, "beta": 0.04},
    "activation checkpointing": {"activation_checkpointing": True},
    "truncated completions masked": {
        "mask_truncated_completions": True,
        "scripted": ["<think>blur"] * 3 + ["<answer>"],
    },
    "padding to a multiple": {"pad_to_multiple_of": 16},
    "temperature": {"temperature": 0.6},
    "high-entropy tokens": {"top_entropy_quantile": 0.4},
    "several images": {"train_dataset": tiny_dataset(4, degraded=True, images_per_row=2)},
    "an evaluation": {"eval_dataset": tiny_dataset(2, seed=1), "eval_strategy": "steps", "eval_steps": 1},
    "nothing but GRPO": OFF,
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_with_the_trainers_other_features(tmp_path, options):
    assert_alike(*both(tmp_path, **(ON | options)))


def test_reentrant_checkpointing(tmp_path):
    detached = {"entropy_degraded_coef": 0.0, "perception_gradient": "original"}
    reentrant = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    assert_alike(*both(tmp_path, **(ON | detached | reentrant)))


def test_prompts_of_all_lengths_and_rows_without_a_view(tmp_path):
    data = concatenate_datasets(
        [tiny_dataset(2, degraded=True), tiny_dataset(2, degraded=True, seed=1, size=(112, 112))]
    )

    def shape(row, index):
        question = [{"role": "user", "content": "Rate this picture. " * (index + 1)}]
        return {"prompt": question, "degraded_image": None if index % 2 else row["degraded_image"]}

    data = data.map(shape, with_indices=True, features=data.features)
    options = {"train_dataset": data, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    plain, shared = both(tmp_path, **options, **ON)
    assert_alike(plain, shared)
    assert plain.logs[0]["perception/rows_without_view"] > 0


def test_bf16_stays_within_its_own_noise(tmp_path):
    def gradients(**options) -> dict[str, torch.Tensor]:
        return run(tmp_path, **options, **GRADIENT_ONLY, **ON).gradients[0]

    exact = gradients()
    noise = relative_difference(gradients(bf16=True), exact)
    assert 1e-4 < noise < 0.2  # bf16 acts at all
    assert relative_difference(gradients(bf16=True, shared_prefix="on"), exact) < 1.5 * noise


def test_model_is_left_as_it_was_for_everybody_else(tmp_path):
    model, processor = tiny_policy()
    prompt = processor.apply_chat_template(
        [[{"role": "user", "content": "Rate."}]], tokenize=True, return_dict=True, return_tensors="pt"
    )
    before = model(**prompt).logits
    trainer = build_trainer(tmp_path, model=model, processing_class=processor, shared_prefix="on", **ON)
    assert torch.equal(trainer.model(**prompt).logits, before)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert loaded.config.text_config._attn_implementation == "sdpa"
    assert torch.equal(loaded(**prompt).logits, before)


def on_and_auto(folder, problem: str, **options):
    with pytest.raises(ValueError, match=f"shared_prefix is on, but {problem}"):
        build_trainer(folder, shared_prefix="on", **options)
    trainer = build_trainer(folder, shared_prefix="auto", **options)
    assert trainer._shares_prefix == {"train": False, "eval": False}
    trainer.train()


def test_batches_without_whole_groups_are_refused_with_numbers_that_would_do(tmp_path):
    problem = "per_device_train_batch_size 6 .* 4; set .* to 4 or 8"
    on_and_auto(tmp_path, problem, per_device_train_batch_size=6, gradient_accumulation_steps=2)


def test_models_and_attentions_that_can_not_share_are_refused_by_name(tmp_path):
    model, processor = tiny_policy("gemma3")
    on_and_auto(tmp_path, "gemma3 ", model=model, processing_class=processor)
    model, processor = tiny_policy()
    model.set_attn_implementation("eager")
    on_and_auto(tmp_path, "attn_implementation is eager", model=model, processing_class=processor)


def test_a_decoder_with_a_window_is_refused(tmp_path):
    model, processor = tiny_policy()
    model.get_decoder().config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="a window of the sequence"):
        build_trainer(tmp_path, model=model, processing_class=processor, shared_prefix="on")


def test_a_transformers_without_the_hooked_methods_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(trl_compat.HOOKS[trl_compat.GENERATION], "_fill", "")
    on_and_auto(tmp_path, "the installed transformers does not fit .*_fill is gone", scripted=None)
    assert build_trainer(tmp_path, shared_prefix="on")._shares_prefix["train"]  # a rollout_func needs none of them


def test_rollouts_that_bring_their_own_prompts_are_refused(tmp_path):
    def rollout(prompts, trainer):
        ids = trainer._tokenize_prompts(prompts)[0]
        ids = [[*row[:-1], 40 + number] for number, row in enumerate(ids)]
        return {"prompt_ids": ids, "completion_ids": [[5, 6]] * len(ids), "logprobs": [[0.0] * 2] * len(ids)}

    trainer = build_trainer(tmp_path, shared_prefix="on")
    trainer.rollout_func = rollout
    with pytest.raises(ValueError, match=r"different prompts.*shared_prefix"):
        trainer.train()


@pytest.mark.parametrize("shared_prefix", ["off", "on"])
def test_work_of_a_step_is_counted(tmp_path, monkeypatch, shared_prefix):
    """The guard against repeated work: tokens through the decoder, patches through the tower, images read."""
    counts = {"tokens": 0, "patches": 0, "processed": 0, "decoded": 0}
    model, processor = tiny_policy()

    def count_tokens(module, args, inputs):
        counts["tokens"] += inputs["inputs_embeds"][..., 0].numel()

    def count_patches(module, args, inputs):
        counts["patches"] += len(args[0] if args else inputs["hidden_states"])

    decoder, tower = model.get_decoder(), model.base_model.visual
    decoder.register_forward_pre_hook(count_tokens, with_kwargs=True)
    tower.register_forward_pre_hook(count_patches, with_kwargs=True)
    decode = UniformImage.decode_example

    def counted(self, *args, **kwargs):
        counts["decoded"] += 1
        return decode(self, *args, **kwargs)

    monkeypatch.setattr(UniformImage, "decode_example", counted)
    group, prompts, steps, length = 4, 2, 2, 8
    trainer = build_trainer(
        tmp_path, model=model, processing_class=processor, shared_prefix=shared_prefix, scripted=None,
        max_completion_length=length, generation_kwargs={"min_new_tokens": length}, per_device_train_batch_size=4,
        gradient_accumulation_steps=2, max_steps=steps, train_dataset=tiny_dataset(prompts * steps), **ON,
    )  # fmt: skip
    preprocess = processor.image_processor._preprocess

    def preprocessed(images, *args, **kwargs):
        counts["processed"] += len(images)
        return preprocess(images, *args, **kwargs)

    monkeypatch.setattr(processor.image_processor, "_preprocess", preprocessed)
    counts.update(dict.fromkeys(counts, 0))  # of the construction nothing is counted
    trainer.train()
    seen = dict(counts)

    row = trainer.processing_class.apply_chat_template(
        [prepare_multimodal_messages([{"role": "user", "content": ""}], images=[tiny_dataset(1)[0]["image"]])],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    question = len(processor.tokenizer(tiny_dataset(1)[0]["prompt"][0]["content"])["input_ids"])
    width, patches = row["input_ids"].size(1) + question, len(row["pixel_values"])
    images = prompts * steps
    assert seen["decoded"] == images  # TRL's own data loading fetches each image 4 x 2 times
    rollouts = images * group
    if shared_prefix == "on":
        # a prompt once for generation and once for each branch; decoding runs one token a rollout and step
        assert seen["tokens"] == images * 3 * width + rollouts * (length - 1) + 2 * (rollouts * length - images)
        assert seen["patches"] == 3 * images * patches
        assert seen["processed"] == 2 * images  # the original and its view
    else:
        assert seen["tokens"] == rollouts * (width + length - 1) + 2 * rollouts * (width + length)
        assert seen["patches"] == 3 * rollouts * patches
        assert seen["processed"] == 2 * rollouts + images
