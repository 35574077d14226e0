"""The memory formula against parameter counts, measured tensors, and DeepSpeed's own estimators."""

import dataclasses

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, PreTrainedModel, Qwen2_5_VLConfig, Qwen3VLConfig

from q_hawkeye_trl.memory import (
    GIB,
    MODELS,
    ModelShape,
    Setup,
    estimate,
    layer_bytes,
    saved_activations,
    setup_of,
    sharding_of,
    vision_layer_bytes,
)
from tiny_models import tiny_policy
from tiny_qwen import qwen_config

SEVEN = MODELS["Qwen/Qwen2.5-VL-7B-Instruct"]
LANGUAGE_MATRICES = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


def shape_of(model: PreTrainedModel) -> ModelShape:
    """Reads the sizes off a model of the Qwen-VL family."""
    text, vision = model.config.text_config, model.config.vision_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    third = model.config.model_type == "qwen3_vl"
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        query=head * text.num_attention_heads,
        key_value=head * text.num_key_value_heads,
        vocabulary=text.vocab_size,
        tied=model.config.tie_word_embeddings,
        vision_layers=vision.depth,
        vision_hidden=vision.hidden_size,
        vision_intermediate=vision.intermediate_size,
        vision_gated=not third,
        query_key_norms=third,
        patch=vision.patch_size,
    )


def real_config(name: str):
    """The published configuration, as far as it decides sizes."""
    if "Qwen3" in name:
        text = {"hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12_288, "num_attention_heads": 32}
        text |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}
        vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096}
        return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    tied = "3B" in name
    sizes = (2048, 36, 11_008, 16, 2, 151_936) if tied else (3584, 28, 18_944, 28, 4, 152_064)
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    text = dict(zip((*names, "vocab_size"), sizes, strict=True)) | {"tie_word_embeddings": tied}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": text["hidden_size"]}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


@pytest.mark.parametrize("name", MODELS)
def test_shapes_match_the_models(name):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(real_config(name))
    assert shape_of(model) == MODELS[name]
    shape = MODELS[name]
    largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules())
    assert shape.largest == largest
    embeddings = {id(p): p.numel() for p in (model.lm_head.weight, model.get_input_embeddings().weight)}
    assert shape.embeddings == sum(embeddings.values())
    layer = model.model.language_model.layers[0]
    assert shape.layer == sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    adapter = get_peft_model(model, LoraConfig(r=64, target_modules=LANGUAGE_MATRICES))
    assert adapter.get_nb_trainable_parameters()[0] == shape.lora_parameters(64)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_states_of_one_process_match_its_tensors(family):
    model, _ = tiny_policy(family)
    shape = shape_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    memory = estimate(shape, Setup(dtype_bytes=4, image_pixels=784 * 4))
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert memory.optimizer == sum(m.nbytes for m in moments)


def test_states_of_an_adapter_match_its_tensors():
    model, _ = tiny_policy("qwen2_5_vl")
    shape = shape_of(model)
    model = get_peft_model(model.bfloat16(), LoraConfig(r=4, target_modules=LANGUAGE_MATRICES))
    trained = [p for p in model.parameters() if p.requires_grad]
    memory = estimate(shape, Setup(lora_rank=4, reference=True, image_pixels=784 * 4))
    assert {p.dtype for p in trained} == {torch.float32}
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.gradients == sum(p.nbytes for p in trained)
    assert memory.optimizer == 2 * memory.gradients
    assert memory.reference == 0  # the policy without its adapter


@pytest.mark.parametrize("devices", [1, 4, 16])
def test_states_match_deepspeeds_estimators(devices):
    count = SEVEN.parameters
    _, expected = estimate_zero2_model_states_mem_needs(count, devices, 1, cpu_offload=False)
    two = estimate(SEVEN, Setup(sharding="zero2", devices=devices))
    assert two.weights + two.gradients + two.optimizer == pytest.approx(expected, rel=1e-6)
    _, expected, _ = estimate_zero3_model_states_mem_needs(
        count, SEVEN.largest, devices, 1, cpu_offload=False, cpu_offload_params=False
    )
    three = estimate(SEVEN, Setup(sharding="zero3", devices=devices))
    states = three.weights + three.gradients + three.optimizer + three.gathered
    assert states == pytest.approx(expected, rel=1e-6)
    host, device, _ = estimate_zero3_model_states_mem_needs(count, SEVEN.largest, devices, additional_buffer_factor=1)
    offloaded = estimate(SEVEN, Setup(sharding="zero3_offload", devices=devices))
    assert offloaded.host * devices == pytest.approx(host, rel=1e-6)
    assert offloaded.gathered == device
    one = estimate(SEVEN, Setup(sharding="zero1", devices=devices))
    assert one.gradients == 2 * count  # whole on every device
    assert (one.weights, one.optimizer) == (two.weights, two.optimizer)


def saved_bytes(forward, parameters) -> int:
    """Bytes of all storages that a forward keeps for its backward, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive, so that no address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(size for size, _ in kept.values())


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
MODEL_TYPES = pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])


def deep(family: str, dtype, *, layers: int = 2, vision_layers: int = 2, key_value_heads: int = 4):
    """A tiny model with this many layers; vision layers without windows."""
    config = qwen_config(family, 64)
    config.text_config.num_hidden_layers, config.vision_config.depth = layers, vision_layers
    config.text_config.layer_types = ["full_attention"] * layers
    config.text_config.num_key_value_heads = key_value_heads
    if family == "qwen3_vl":
        config.vision_config.deepstack_visual_indexes = []
    else:
        config.vision_config.fullatt_block_indexes = list(range(vision_layers))
    return AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")


def kept_by_decoder(family: str, dtype, layers: int, **options) -> tuple[float, ModelShape]:
    """Bytes per token that a decoder keeps, and the shape of its model."""
    recomputes = options.pop("recomputes", False)
    model = deep(family, dtype, layers=layers, **options)
    if recomputes:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    inputs = torch.randn(1, 384, 64, dtype=dtype, requires_grad=True)
    decoder = model.model.language_model
    kept = saved_bytes(lambda: decoder(inputs_embeds=inputs, use_cache=False), model.parameters())
    return kept / 384, shape_of(model)


@DTYPES
@MODEL_TYPES
@pytest.mark.parametrize("key_value_heads", [1, 8])
def test_what_a_decoder_layer_keeps(family, dtype, key_value_heads):
    """The difference between four layers and two, within 5%."""
    (two, _), (four, shape) = (
        kept_by_decoder(family, dtype, layers, key_value_heads=key_value_heads) for layers in (2, 4)
    )
    assert (four - two) / 2 == pytest.approx(layer_bytes(shape, dtype.itemsize), rel=0.05)


def test_recomputation_keeps_the_inputs_of_the_layers():
    two, four = (kept_by_decoder("qwen2_5_vl", torch.float32, layers, recomputes=True)[0] for layers in (2, 4))
    assert (four - two) / 2 == pytest.approx(64 * 4, rel=0.05)


@DTYPES
@MODEL_TYPES
def test_what_a_vision_layer_keeps(family, dtype):
    """The difference between four layers and two, within 5%."""
    kept, grid = {}, torch.tensor([[1, 24, 24]])
    for layers in (2, 4):
        model = deep(family, dtype, vision_layers=layers)
        pixels = torch.randn(24 * 24, 6 * model.config.vision_config.patch_size**2, dtype=dtype)
        tower = model.model.visual
        kept[layers] = saved_bytes(lambda f=tower, x=pixels: f(x, grid_thw=grid), model.parameters())
    expected = vision_layer_bytes(shape_of(model), dtype.itemsize)
    assert (kept[4] - kept[2]) / 2 / (24 * 24) == pytest.approx(expected, rel=0.05)


def test_activations_by_hand():
    small = Setup(rows=8, group=4, image_pixels=784 * 100, completion=10, gradient_branches=1)
    prompt, completions = 100 + 150, 8 * 10
    tokens, patches = 2 * prompt + completions, 2 * 400
    inside = max(tokens * layer_bytes(SEVEN, 2), patches * vision_layer_bytes(SEVEN, 2))
    shared = 28 * tokens * 3584 * 2 + 32 * patches * 1280 * 2 + inside
    assert saved_activations(SEVEN, small) == shared
    assert estimate(SEVEN, dataclasses.replace(small, gradient_branches=2)).activations == 2 * shared
    apart = saved_activations(SEVEN, dataclasses.replace(small, shared_prefix=False))
    tokens, patches = 8 * (prompt + 10), 8 * 400
    inside = max(tokens * layer_bytes(SEVEN, 2), patches * vision_layer_bytes(SEVEN, 2))
    assert apart == 28 * tokens * 3584 * 2 + 32 * patches * 1280 * 2 + inside
    whole = saved_activations(SEVEN, dataclasses.replace(small, checkpointing=False))
    assert whole == 28 * 580 * layer_bytes(SEVEN, 2) + 32 * 800 * vision_layer_bytes(SEVEN, 2)


def test_more_devices_never_need_more_and_sharding_helps():
    totals = {}
    for sharding in ("ddp", "zero1", "zero2", "zero3", "zero3_offload"):
        row = [
            estimate(SEVEN, Setup(sharding=sharding, devices=n, reference=True, generates=False)).total
            for n in (2, 4, 8)
        ]
        assert row == sorted(row, reverse=True)
        totals[sharding] = row[1]
    assert totals["zero1"] > totals["zero2"] > totals["zero3"] > totals["zero3_offload"]


def test_four_bits_are_half_a_byte_and_their_scales():
    memory = estimate(SEVEN, Setup(lora_rank=8, four_bit=True))
    matrices = SEVEN.parameters - SEVEN.embeddings
    expected = 2 * SEVEN.embeddings + matrices * (0.5 + 1 / 64 + 4 / 64 / 256) + 2 * SEVEN.lora_parameters(8)
    assert memory.weights == pytest.approx(expected)


def test_generation_counts_the_cache_and_what_zero3_gathers():
    few, many = (estimate(SEVEN, Setup(sharding="zero3", devices=4, rows=r, group=4)).generation for r in (4, 8))
    token = 28 * 2 * 512 * 2
    assert many - few == 4 * ((1003 + 150 + 256) * token + 4 * 152_064)
    assert few - (many - few) == 2 * SEVEN.parameters
    assert estimate(SEVEN, Setup(generates=False)).generation == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharding": "zero4"}, "sharding.*zero4"),
        ({"devices": 0}, "devices.*0"),
        ({"four_bit": True}, "four_bit.*lora_rank"),
        ({"sharding": "zero3", "dtype_bytes": 4}, "dtype_bytes.*4"),
    ],
)
def test_wrong_setups(options, message):
    with pytest.raises(ValueError, match=message):
        Setup(**options)


P, T, N = SEVEN.parameters, SEVEN.parameters, 4


@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        (Setup(), 2 * P + 2 * T + 4 * T),
        (Setup(dtype_bytes=4), 16 * T),
        (Setup(sharding="ddp"), 2 * P + 2 * T + 4 * T + 2 * T),
        (Setup(sharding="zero1", devices=N), 2 * P + 2 * T + 16 * T / N),
        (Setup(sharding="zero2", devices=N), 2 * P + 2 * T / N + 16 * T / N),
        (Setup(sharding="zero3", devices=N), (2 * P + 16 * T) / N),
        (Setup(sharding="zero3_offload", devices=N), 0),
        (Setup(sharding="fsdp2", devices=N), 16 * T / N),
    ],
    ids=lambda value: value.sharding if isinstance(value, Setup) else "",
)
def test_the_documented_formulas_of_the_states(setup, expected):
    memory = estimate(SEVEN, setup)
    assert memory.weights + memory.gradients + memory.optimizer == pytest.approx(expected)
    offloaded = setup.sharding == "zero3_offload"
    assert memory.host == (18 * T / N if offloaded else 0)
    with_reference = estimate(SEVEN, dataclasses.replace(setup, reference=True))
    shards = N if setup.sharding in ("zero3", "fsdp2") else 1
    assert with_reference.reference == (0 if offloaded else setup.dtype_bytes * P / shards)


def test_a_recipe_and_a_configuration_give_a_setup():
    recipe = {"dtype": "bfloat16", "per_device_train_batch_size": 4, "num_generations": 4, "beta": 0.04}
    recipe |= {"max_completion_length": 2048, "max_pixels": 1000, "use_vllm": True}
    recipe["vllm_gpu_memory_utilization"] = 0.25
    zero = {"distributed_type": "DEEPSPEED", "num_processes": 4, "deepspeed_config": {"zero_stage": 3}}
    expected = Setup(sharding="zero3", devices=4, rows=4, group=4, image_pixels=1000, completion=2048, reference=True)
    assert setup_of(recipe, zero) == dataclasses.replace(expected, vllm_bytes=20 * GIB, generates=False)
    adapter = recipe | {"use_peft": True, "lora_r": 8, "load_in_4bit": True, "perception_gradient": "original"}
    setup = setup_of(adapter | {"vllm_mode": "server", "per_device_train_batch_size": 6}, {"distributed_type": "NO"})
    assert (setup.lora_rank, setup.four_bit, setup.reference, setup.vllm_bytes) == (8, True, False, 0)
    assert (setup.gradient_branches, setup.shared_prefix, setup.devices) == (1, False, 1)
    zero["deepspeed_config"]["offload_optimizer_device"] = "cpu"
    assert [sharding_of(c) for c in (zero, {"distributed_type": "FSDP"})] == ["zero3_offload", "fsdp2"]


def test_a_sleeping_engine_leaves_its_memory_to_the_training():
    awake, asleep = (
        estimate(SEVEN, Setup(lora_rank=8, generates=False, vllm_bytes=20 * GIB, vllm_sleeps=sleeps))
        for sleeps in (False, True)
    )
    training = awake.activations + awake.head
    assert awake.total - asleep.total == pytest.approx(training)
    assert training < 20 * GIB
