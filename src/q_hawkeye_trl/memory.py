"""
Memory that a training needs on one device, by a formula: model states, activations, language-model head, cache of the
generation. docs/recipes.md explains it; nothing here is measured on a GPU.

What it leaves out: the context of the driver and of the communication library, fragmentation of the allocator, short-
lived buffers of single operations, the image processor. Leave about a tenth of the card free for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

GIB = 2**30
SHARDINGS = ("none", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
"""How the states are spread over devices, by the names of the files in recipes/accelerate/."""

PROMPT_TEXT_TOKENS = 150
"""Tokens of the project's prompt beside the image, rounded up."""

_FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # bytes a weight: NF4, 8-bit scales of 64 weights, theirs of 256
_HEAD_TILE = (4096, 32_768)  # tokens and words of one tile of logits in TRL's head


@dataclass(frozen=True)
class ModelShape:
    """
    Sizes of a vision-language model of the Qwen-VL family.

    Args:
        parameters (`int`):
            All parameters, tied ones once.
        layers (`int`), hidden (`int`), intermediate (`int`):
            Decoder layers, width, width of their MLP.
        query (`int`), key_value (`int`):
            Width of the queries, and of the keys: heads times their size.
        vocabulary (`int`):
            Rows of the embedding.
        tied (`bool`):
            Whether the head is the embedding.
        vision_layers (`int`), vision_hidden (`int`), vision_intermediate (`int`):
            The same of the vision tower.
        vision_gated (`bool`):
            Whether its MLP has a gate (Qwen2.5-VL) or not (Qwen3-VL).
        query_key_norms (`bool`):
            Whether queries and keys of the decoder are normed (Qwen3-VL).
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
        attention = self.hidden * (2 * self.query + 2 * self.key_value)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def largest(self) -> int:
        """Parameters of the largest module without submodules: what ZeRO-3 gathers at least."""
        return max(self.vocabulary * self.hidden, self.hidden * self.intermediate)

    def lora_parameters(self, rank: int) -> int:
        """Parameters of an adapter on the seven matrices of every decoder layer."""
        ends = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.key_value)
        return self.layers * rank * (ends + 3 * (self.hidden + self.intermediate))


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
    What decides how much memory a training needs.

    Args:
        sharding (`str`):
            One of [`SHARDINGS`].
        devices (`int`):
            Devices over which states are sharded.
        rows (`int`), group (`int`):
            Rollouts a device and micro-batch, and rollouts of one image (G).
        image_pixels (`int`):
            Pixels of an image as the model sees it.
        completion (`int`):
            Longest completion in tokens.
        dtype_bytes (`int`):
            Bytes of a weight: 2 for bfloat16, 4 for float32.
        lora_rank (`int`):
            Rank of the adapter; 0 trains all parameters.
        four_bit (`bool`):
            Whether the frozen matrices are quantised to four bits.
        reference (`bool`):
            Whether a frozen copy stays in memory (`beta` above 0 without an adapter).
        checkpointing (`bool`):
            Whether activations are recomputed layer by layer.
        shared_prefix (`bool`):
            Whether the rollouts of a group share their prompt.
        gradient_branches (`int`):
            Forwards whose activations wait for one backward: 2 with a gradient through the degraded view, otherwise 1.
        vllm_bytes (`float`):
            What an engine in the same process reserves.
        vllm_sleeps (`bool`):
            Whether it gives that back while the model trains.
        generates (`bool`):
            Whether the model itself generates; not so with vLLM.
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
            raise ValueError("four_bit without an adapter: quantised weights can't be trained, give a lora_rank.")


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
            The cache of the rollouts, and the whole model where ZeRO-3 gathers it to generate.
        vllm:
            What the engine reserves.
        vllm_sleeps:
            Whether it gives that back while the model trains.
        host:
            States on the host of this device, its share.
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
        """Largest sum on the device: the states with either the training's or the generation's share."""
        states = self.weights + self.gradients + self.optimizer + self.reference
        training = self.gathered + self.activations + self.head + (0 if self.vllm_sleeps else self.vllm)
        return states + max(training, self.generation + self.vllm)


def estimate(model: ModelShape, setup: Setup) -> Memory:
    """
    Estimates the memory of a training with AdamW.

    Args:
        model ([`ModelShape`]):
            The model.
        setup ([`Setup`]):
            The training.

    Returns:
        [`Memory`]

    Source: Rajbhandari et al. (2020), "ZeRO: Memory optimizations toward training trillion parameter models", for the
    states; DeepSpeed's own estimators have the same factors.
    """
    weights, gradients, optimizer, reference, host = _states(model, setup)
    sharded = setup.sharding in ("zero3", "zero3_offload", "fsdp2")
    whole = model.parameters * setup.dtype_bytes
    gathered = 0.0
    if setup.sharding == "fsdp2":  # two layers at a time, and what stands outside of the layers
        gathered = setup.dtype_bytes * (2 * model.layer + model.embeddings)
    elif sharded:
        gathered = 2 * setup.dtype_bytes * model.largest
    generation = _cache(model, setup) if setup.generates else 0.0
    if setup.generates and sharded:
        generation += whole if setup.sharding != "fsdp2" else gathered
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        reference=reference,
        gathered=gathered,
        activations=setup.gradient_branches * saved_activations(model, setup),
        head=_head(model, setup),
        generation=generation,
        vllm=setup.vllm_bytes,
        vllm_sleeps=setup.vllm_sleeps,
        host=host,
    )


def _states(model: ModelShape, setup: Setup) -> tuple[float, float, float, float, float]:
    """Weights, gradients, optimizer and reference on the device, and states on the host."""
    size, n, full = setup.dtype_bytes, setup.devices, not setup.lora_rank
    trained = model.parameters if full else model.lora_parameters(setup.lora_rank)
    frozen = 0 if full else model.parameters
    frozen_bytes: float = frozen * size
    if setup.four_bit:
        frozen_bytes = model.embeddings * size + (frozen - model.embeddings) * _FOUR_BITS
    reference = model.parameters * size if setup.reference and full else 0
    # an adapter beside bfloat16 weights is kept in float32, beside quantised ones in bfloat16
    trained_size = size if full or setup.four_bit else 4

    if setup.sharding in ("none", "ddp"):
        buckets = 2 if setup.sharding == "ddp" else 1  # data parallelism copies gradients into its buckets
        own = trained * trained_size
        return frozen_bytes + own, buckets * own, 2 * own, reference, 0
    if setup.sharding == "fsdp2":  # float32 shards of what is trained
        return (frozen_bytes + 4 * trained) / n, 4 * trained / n, 8 * trained / n, reference / n, 0
    # DeepSpeed: weights and gradients in 16 bits; float32 weights, gradients and two moments of this device's share.
    # ZeRO-3 turns gradients to float32 part by part, which its estimator counts as two bytes instead of four.
    if size == 4:
        raise ValueError("the formula knows DeepSpeed with bfloat16 weights only; set dtype_bytes to 2.")
    moments = 16 * trained / n
    if setup.sharding == "zero3_offload":
        states = frozen_bytes / n + 2 * trained / n + reference / n
        return 0, 0, 0, 0, states + moments
    if setup.sharding == "zero3":
        return (frozen_bytes + 2 * trained) / n, 2 * trained / n, 14 * trained / n, reference / n, 0
    whole_gradients = 2 * trained / (1 if setup.sharding == "zero1" else n)
    return frozen_bytes + 2 * trained, whole_gradients, moments, reference, 0


def prompt_tokens(model: ModelShape, setup: Setup) -> int:
    """Tokens of the prompt with its image."""
    return setup.image_pixels // (2 * model.patch) ** 2 + PROMPT_TEXT_TOKENS


def saved_activations(model: ModelShape, setup: Setup) -> float:
    """
    Bytes that one forward keeps for its backward: with recomputation the input of every layer and the inside of one,
    without it the inside of all.
    """
    size, prompt, groups = setup.dtype_bytes, prompt_tokens(model, setup), -(-setup.rows // setup.group)
    if setup.shared_prefix:
        images, tokens = groups, groups * prompt + setup.rows * setup.completion
    else:
        images, tokens = setup.rows, setup.rows * (prompt + setup.completion)
    patches = images * (setup.image_pixels // model.patch**2)
    inside, inside_vision = tokens * layer_bytes(model, size), patches * vision_layer_bytes(model, size)
    if not setup.checkpointing:
        return model.layers * inside + model.vision_layers * inside_vision
    inputs = model.layers * tokens * model.hidden * size + model.vision_layers * patches * model.vision_hidden * size
    return inputs + max(inside, inside_vision)


def layer_bytes(model: ModelShape, size: int) -> float:
    """
    Bytes that a decoder layer keeps a token: two norms (their input in float32, the normed and the scaled one),
    queries, keys, values and the attention's result, and gate, its activation, up and their product. Norms on queries
    and keys (Qwen3-VL) add their input in float32 and the normed one.
    """
    norms = 2 * (4 + 2 * size) * model.hidden
    if model.query_key_norms:
        norms += (4 + size) * (model.query + model.key_value)
    return norms + size * (2 * model.query + 2 * model.key_value + 4 * model.intermediate)


def vision_layer_bytes(model: ModelShape, size: int) -> float:
    """
    Bytes that a layer of the vision tower keeps a patch: two norms, the joint queries, keys and values, both with
    their positions, the attention's result twice, and the MLP.
    """
    norms = 2 * (4 + 2 * size) if model.vision_gated else 2 * 2 * size
    mlp = (4 if model.vision_gated else 2) * model.vision_intermediate
    return norms * model.vision_hidden + size * (7 * model.vision_hidden + mlp)


def _head(model: ModelShape, setup: Setup) -> float:
    """A tile of logits, the last hidden states' gradient in float32, and the head's own where it is trained."""
    labelled = setup.rows * setup.completion
    tile = min(labelled, _HEAD_TILE[0]) * min(model.vocabulary, _HEAD_TILE[1]) * setup.dtype_bytes
    own = 0 if setup.lora_rank else 4 * model.vocabulary * model.hidden
    return tile + 4 * labelled * model.hidden + own


def _cache(model: ModelShape, setup: Setup) -> float:
    """Keys and values of all rollouts, each with its prompt, and the logits of one step in float32."""
    tokens = setup.rows * (prompt_tokens(model, setup) + setup.completion)
    return tokens * model.layers * 2 * model.key_value * setup.dtype_bytes + 4 * setup.rows * model.vocabulary


def setup_of(recipe: Mapping[str, Any], accelerate: Mapping[str, Any], *, card_gib: float = 80.0) -> Setup:
    """
    Reads off a recipe and an accelerate configuration what the formula needs.

    Args:
        recipe (`Mapping`):
            Resolved recipe ([`~recipe.load_recipe`]).
        accelerate (`Mapping`):
            Contents of a file of recipes/accelerate/.
        card_gib (`float`, *optional*, defaults to `80.0`):
            Memory of a card, of which vLLM in the same process takes its share.

    Returns:
        [`Setup`]
    """
    rows, group = recipe.get("per_device_train_batch_size", 8), recipe.get("num_generations", 8)
    vllm = bool(recipe.get("use_vllm"))
    colocated = vllm and recipe.get("vllm_mode", "colocate") == "colocate"
    degraded = recipe.get("perception_gamma", 1e-4) > 0 or recipe.get("entropy_degraded_coef", 1e-3) > 0
    both = degraded and recipe.get("perception_gradient", "both") == "both"
    return Setup(
        sharding=sharding_of(accelerate),
        devices=accelerate.get("num_processes", 1),
        rows=rows,
        group=group,
        image_pixels=recipe.get("max_pixels", 786_432),
        completion=recipe.get("max_completion_length", 256),
        dtype_bytes=2 if recipe.get("dtype") == "bfloat16" else 4,
        lora_rank=recipe.get("lora_r", 16) if recipe.get("use_peft") else 0,
        four_bit=bool(recipe.get("load_in_4bit")),
        reference=recipe.get("beta", 0.0) > 0 and not recipe.get("use_peft"),
        checkpointing=recipe.get("activation_checkpointing", True),
        shared_prefix=recipe.get("shared_prefix", "auto") != "off" and rows % group == 0,
        gradient_branches=2 if both else 1,
        vllm_bytes=recipe.get("vllm_gpu_memory_utilization", 0.3) * card_gib * GIB if colocated else 0.0,
        vllm_sleeps=bool(recipe.get("vllm_enable_sleep_mode")),
        generates=not vllm,
    )


def sharding_of(accelerate: Mapping[str, Any]) -> str:
    """Names the sharding of an accelerate configuration."""
    kind = accelerate["distributed_type"]
    if kind == "DEEPSPEED":
        plugin = accelerate["deepspeed_config"]
        offload = plugin.get("offload_optimizer_device", "none") == "cpu"
        return f"zero{plugin['zero_stage']}" + ("_offload" if offload else "")
    return {"NO": "none", "MULTI_GPU": "ddp", "FSDP": "fsdp2"}[kind]
