"""
Estimates the memory that a training needs on one device: states, activations, language-model head, generation.

docs/recipes.md explains the formula. It leaves out the context of the driver and of the communication library, the
allocator's fragmentation, short-lived buffers and the image processor: keep about a tenth of the card free for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

GIB = 2**30
SHARDINGS = ("none", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
"""How states are spread over devices, named like the files in recipes/accelerate/."""
PROMPT_TEXT_TOKENS = 150
"""Tokens of the project's prompt without its image, rounded up."""

_FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # bytes per weight: NF4, 8-bit scales of 64 weights, theirs of 256
_HEAD_TILE = (4096, 32_768)  # tokens and vocabulary rows in one tile of logits of TRL's head


@dataclass(frozen=True)
class ModelShape:
    """
    Sizes of a vision-language model of the Qwen-VL family.

    Args:
        parameters (`int`):
            All parameters, tied ones once.
        layers (`int`), hidden (`int`), intermediate (`int`):
            Decoder layers, their width, and the width of their MLP.
        query (`int`), key_value (`int`):
            Widths of queries and of keys: heads times head size.
        vocabulary (`int`):
            Rows of the embedding.
        tied (`bool`):
            Whether the head shares the embedding's weights.
        vision_layers (`int`), vision_hidden (`int`), vision_intermediate (`int`):
            The same for the vision tower.
        vision_gated (`bool`):
            Whether the vision MLP has a gate (Qwen2.5-VL) or not (Qwen3-VL).
        query_key_norms (`bool`):
            Whether the decoder normalizes queries and keys (Qwen3-VL).
        patch (`int`):
            Side of a patch in pixels; 2 x 2 patches become one token.
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    vocabulary: int
    tied: bool
    vision_layers: int
    vision_hidden: int
    vision_intermediate: int
    vision_gated: bool
    query_key_norms: bool
    patch: int

    @property
    def embeddings(self) -> int:
        """Parameters of embedding and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def layer(self) -> int:
        """Parameters of the matrices of one decoder layer."""
        return self.hidden * (2 * self.query + 2 * self.key_value + 3 * self.intermediate)

    @property
    def largest(self) -> int:
        """Parameters of the largest module without submodules, the least that ZeRO-3 gathers."""
        return self.hidden * max(self.vocabulary, self.intermediate)

    def lora_parameters(self, rank: int) -> int:
        """Parameters of an adapter on the seven matrices of every decoder layer."""
        attention = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.key_value)
        return self.layers * rank * (attention + 3 * (self.hidden + self.intermediate))


MODELS: dict[str, ModelShape] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": ModelShape(
        3_754_622_976, 36, 2048, 11_008, 2048, 256, 151_936, True, 32, 1280, 3420, True, False, 14
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": ModelShape(
        8_292_166_656, 28, 3584, 18_944, 3584, 512, 152_064, False, 32, 1280, 3420, True, False, 14
    ),
    "Qwen/Qwen3-VL-8B-Instruct": ModelShape(
        8_767_123_696, 36, 4096, 12_288, 4096, 1024, 151_936, False, 27, 1152, 4304, False, True, 16
    ),
}
"""Shapes of the models that the recipes name."""


@dataclass(frozen=True)
class Setup:
    """
    Settings that decide how much memory a training needs.

    Args:
        sharding (`str`):
            One of [`SHARDINGS`].
        devices (`int`):
            Devices over which states are sharded.
        rows (`int`), group (`int`):
            Rollouts per device and micro-batch, and rollouts per image (G).
        image_pixels (`int`):
            Pixels of an image as the model sees it.
        completion (`int`):
            Longest completion in tokens.
        dtype_bytes (`int`):
            Bytes per weight: 2 for bfloat16, 4 for float32.
        lora_rank (`int`):
            Rank of the adapter; 0 trains all parameters.
        four_bit (`bool`):
            Whether the frozen matrices are quantized to four bits.
        reference (`bool`):
            Whether a frozen copy stays in memory (`beta` above 0 without an adapter).
        checkpointing (`bool`):
            Whether activations are recomputed layer by layer.
        shared_prefix (`bool`):
            Whether the rollouts of a group share their prompt.
        gradient_branches (`int`):
            Forwards whose activations are kept for one backward: 2 with a gradient through the degraded image.
        vllm_bytes (`float`):
            What a vLLM engine in the same process reserves.
        vllm_sleeps (`bool`):
            Whether the engine releases it while the model trains.
        generates (`bool`):
            Whether the model itself generates; `False` with vLLM.
    """

    sharding: str = "none"
    devices: int = 1
    rows: int = 8
    group: int = 8
    image_pixels: int = 786_432
    completion: int = 256
    dtype_bytes: int = 2
    lora_rank: int = 0
    four_bit: bool = False
    reference: bool = False
    checkpointing: bool = True
    shared_prefix: bool = True
    gradient_branches: int = 2
    vllm_bytes: float = 0.0
    vllm_sleeps: bool = False
    generates: bool = True

    def __post_init__(self):
        if self.sharding not in SHARDINGS:
            raise ValueError(f"sharding is {self.sharding!r}; expected one of {', '.join(SHARDINGS)}.")
        for name in ("devices", "rows", "group", "image_pixels", "completion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.four_bit and not self.lora_rank:
            raise ValueError("four_bit needs an adapter, since quantized weights can't be trained: set lora_rank.")
        if self.sharding.startswith("zero") and self.dtype_bytes != 2:
            raise ValueError(
                f"dtype_bytes is {self.dtype_bytes}; the formula covers DeepSpeed with bfloat16 (2) only."
            )


class Memory(NamedTuple):
    """
    Bytes on one device, and on its host.

    Args:
        weights, gradients, optimizer, reference:
            The states, or this device's share of them.
        gathered:
            Parameters that a sharded model gathers for a forward.
        activations:
            What the backward needs, of all branches.
        head:
            A tile of logits, and the head's gradient in float32.
        generation:
            The cache of the rollouts, and the whole model if ZeRO-3 gathers it to generate.
        vllm:
            What the engine reserves.
        vllm_sleeps:
            Whether the engine releases that while the model trains.
        host:
            This device's share of the states on the host.
    """

    weights: float
    gradients: float
    optimizer: float
    reference: float
    gathered: float
    activations: float
    head: float
    generation: float
    vllm: float
    vllm_sleeps: bool
    host: float

    @property
    def total(self) -> float:
        """Largest sum on the device: the states with what either training or generation needs."""
        training = self.gathered + self.activations + self.head + (0 if self.vllm_sleeps else self.vllm)
        return sum(self[:4]) + max(training, self.generation + self.vllm)


def estimate(model: ModelShape, setup: Setup) -> Memory:
    """
    Estimates the memory of a training with AdamW.

    Args:
        model ([`ModelShape`]):
            The model.
        setup ([`Setup`]):
            The training.

    Returns:
        [`Memory`]: Bytes on one device.

    Source: Rajbhandari et al. (2020), "ZeRO: Memory optimizations toward training trillion parameter models", for the
    states; DeepSpeed's own estimators use the same factors.
    """
    size, prompt = setup.dtype_bytes, prompt_tokens(model, setup)
    gathered = generation = 0.0
    if setup.sharding == "fsdp2":  # two layers at a time, and what is outside the layers
        gathered = size * (2 * model.layer + model.embeddings)
    elif setup.sharding in ("zero3", "zero3_offload"):
        gathered = 2 * size * model.largest
    if setup.generates:  # keys and values of every rollout with its prompt, and the logits of one step in float32
        cached = setup.rows * (prompt + setup.completion)
        generation = cached * model.layers * 2 * model.key_value * size + 4 * setup.rows * model.vocabulary
        generation += model.parameters * size if setup.sharding.startswith("zero3") else gathered
    labelled = setup.rows * setup.completion  # tokens
    head = min(labelled, _HEAD_TILE[0]) * min(model.vocabulary, _HEAD_TILE[1]) * size
    # in float32: the gradient of the last hidden states, and that of the head itself if it is trained
    head += 4 * model.hidden * (labelled + (0 if setup.lora_rank else model.vocabulary))
    activations = setup.gradient_branches * saved_activations(model, setup)
    weights, gradients, optimizer, reference, host = _states(model, setup)
    needed = (gathered, activations, head, generation, setup.vllm_bytes, setup.vllm_sleeps)
    return Memory(weights, gradients, optimizer, reference, *needed, host)


def _states(model: ModelShape, setup: Setup) -> tuple[float, float, float, float, float]:
    """Weights, gradients, optimizer and reference on the device, and states on the host."""
    size, n, full = setup.dtype_bytes, setup.devices, not setup.lora_rank
    trained = model.parameters if full else model.lora_parameters(setup.lora_rank)
    frozen: float = 0 if full else model.parameters * size
    if setup.four_bit:
        frozen = model.embeddings * size + (model.parameters - model.embeddings) * _FOUR_BITS
    reference = model.parameters * size if setup.reference and full else 0
    if setup.sharding in ("none", "ddp"):
        # PEFT keeps an adapter of bfloat16 weights in float32, one of quantized weights in bfloat16
        own = trained * (size if full or setup.four_bit else 4)
        buckets = 2 if setup.sharding == "ddp" else 1  # DDP copies gradients into its buckets
        return frozen + own, buckets * own, 2 * own, reference, 0
    if setup.sharding == "fsdp2":  # float32 shards of the trained parameters
        return (frozen + 4 * trained) / n, 4 * trained / n, 8 * trained / n, reference / n, 0
    # DeepSpeed: weights and gradients in 16 bits, and in float32 a share of weights, gradients and moments.
    # ZeRO-3 converts gradients to float32 part by part, which its estimator counts as two bytes instead of four.
    shard = 16 * trained / n
    if setup.sharding == "zero3_offload":
        return 0, 0, 0, 0, (frozen + 2 * trained + reference) / n + shard
    if setup.sharding == "zero3":
        return (frozen + 2 * trained) / n, 2 * trained / n, 14 * trained / n, reference / n, 0
    return frozen + 2 * trained, 2 * trained / (1 if setup.sharding == "zero1" else n), shard, reference, 0


def prompt_tokens(model: ModelShape, setup: Setup) -> int:
    """Tokens of the prompt with its image."""
    return setup.image_pixels // (2 * model.patch) ** 2 + PROMPT_TEXT_TOKENS


def saved_activations(model: ModelShape, setup: Setup) -> float:
    """
    Bytes that one forward keeps for its backward.

    With recomputation these are the inputs of all layers and the inside of one, otherwise the inside of all.
    """
    size, prompt = setup.dtype_bytes, prompt_tokens(model, setup)
    prompts = -(-setup.rows // setup.group) if setup.shared_prefix else setup.rows
    tokens = prompts * prompt + setup.rows * setup.completion
    patches = prompts * (setup.image_pixels // model.patch**2)
    inside, inside_vision = tokens * layer_bytes(model, size), patches * vision_layer_bytes(model, size)
    if not setup.checkpointing:
        return model.layers * inside + model.vision_layers * inside_vision
    inputs = model.layers * tokens * model.hidden * size + model.vision_layers * patches * model.vision_hidden * size
    return inputs + max(inside, inside_vision)


def layer_bytes(model: ModelShape, size: int) -> float:
    """
    Bytes that a decoder layer keeps per token.

    Two norms (their input in float32, normalized and scaled), queries, keys, values, the attention's result, and the
    MLP's gate, its activation, up and their product; with norms of queries and keys also their input in float32.
    """
    norms = 2 * (4 + 2 * size) * model.hidden
    if model.query_key_norms:
        norms += (4 + size) * (model.query + model.key_value)
    return norms + size * (2 * model.query + 2 * model.key_value + 4 * model.intermediate)


def vision_layer_bytes(model: ModelShape, size: int) -> float:
    """
    Bytes that a layer of the vision tower keeps per patch.

    Two norms, joint queries, keys and values, two of them with positions, the attention's result twice, and the MLP.
    """
    norms = 2 * (4 + 2 * size) if model.vision_gated else 2 * 2 * size
    mlp = (4 if model.vision_gated else 2) * model.vision_intermediate
    return norms * model.vision_hidden + size * (7 * model.vision_hidden + mlp)


def setup_of(recipe: Mapping[str, Any], accelerate: Mapping[str, Any], *, card_gib: float = 80.0) -> Setup:
    """
    Reads from a recipe and an accelerate configuration what the formula needs.

    Args:
        recipe (`Mapping`):
            Resolved recipe ([`~recipe.load_recipe`]).
        accelerate (`Mapping`):
            Contents of a file of recipes/accelerate/.
        card_gib (`float`, *optional*, defaults to `80.0`):
            Memory of a card in GiB, of which vLLM in the same process reserves its share.

    Returns:
        [`Setup`]: Settings of the training.
    """
    get, adapter, vllm = recipe.get, bool(recipe.get("use_peft")), bool(recipe.get("use_vllm"))
    rows, group = get("per_device_train_batch_size", 8), get("num_generations", 8)
    colocated = vllm and get("vllm_mode", "colocate") == "colocate"
    degraded = get("perception_gamma", 1e-4) > 0 or get("entropy_degraded_coef", 1e-3) > 0
    return Setup(
        sharding=sharding_of(accelerate),
        devices=accelerate.get("num_processes", 1),
        rows=rows,
        group=group,
        image_pixels=get("max_pixels", 786_432),
        completion=get("max_completion_length", 256),
        dtype_bytes=2 if get("dtype") == "bfloat16" else 4,
        lora_rank=get("lora_r", 16) if adapter else 0,
        four_bit=bool(get("load_in_4bit")),
        reference=get("beta", 0.0) > 0 and not adapter,
        checkpointing=get("activation_checkpointing", True),
        shared_prefix=get("shared_prefix", "auto") != "off" and rows % group == 0,
        gradient_branches=2 if degraded and get("perception_gradient", "both") == "both" else 1,
        vllm_bytes=get("vllm_gpu_memory_utilization", 0.3) * card_gib * GIB if colocated else 0.0,
        vllm_sleeps=bool(get("vllm_enable_sleep_mode")),
        generates=not vllm,
    )


def sharding_of(accelerate: Mapping[str, Any]) -> str:
    """Names the sharding of an accelerate configuration."""
    kind = accelerate["distributed_type"]
    if kind == "DEEPSPEED":
        plugin = accelerate["deepspeed_config"]
        offload = plugin.get("offload_optimizer_device", "none") == "cpu"
        return f"zero{plugin['zero_stage']}" + "_offload" * offload
    return {"NO": "none", "MULTI_GPU": "ddp", "FSDP": "fsdp2"}[kind]
