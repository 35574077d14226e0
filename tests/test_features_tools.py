"""Tools: the policy calls one, reads its answer and continues; the tool's tokens count in no term."""

import copy

import pytest
from trl.chat_template_utils import qwen3_template

from harness import OFF, ON, GradientRecorder, Run, build_trainer, largest_difference, relative_difference
from test_features import check_logs
from tiny_models import tiny_image, tiny_policy

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ block['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>\n"
    '{"name": "{{ call["function"]["name"] }}", "arguments": {{ call["function"]["arguments"] | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = '<tool_call>\n{"name": "%s", "arguments": {"part": "sky"}}\n</tool_call>'
FINAL = ("<think>blur</think><answer>1.50</answer>", "<think>sharp</think><answer>4.25</answer>", "no idea")


def sharpness(part: str) -> str:
    """
    Measures how sharp a part of the picture is.

    Args:
        part: Name of the part.

    Returns:
        What was measured.
    """
    return f"sharpness of the {part}: 0.2"


def zoom(part: str) -> list:
    """
    Shows a part of the picture at a larger scale.

    Args:
        part: Name of the part.

    Returns:
        The part.
    """
    return [{"type": "image", "image": tiny_image(seed=9)}]


def with_script(trainer, tool: str) -> None:
    """Every second row calls the tool first; then each row gives its answer. Replaces the generation alone."""
    tokenizer = trainer.processing_class.tokenizer
    turns = []

    def generate(prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        first = not turns or turns[-1] != "first"
        turns.append("first" if first else "second")
        texts = [CALL % tool if first and row % 2 else FINAL[row % 3] for row in range(len(prompt_ids))]
        return [[*tokenizer.encode(t, add_special_tokens=False), tokenizer.eos_token_id] for t in texts], None

    trainer._generate_single_turn = generate


def policy_with_tools() -> dict:
    model, processor = tiny_policy("qwen2_5_vl")
    processor = copy.deepcopy(processor)
    processor.chat_template = TEMPLATE
    processor.tokenizer.response_template = qwen3_template
    return {"model": model, "processing_class": processor, "scripted": None, "max_completion_length": 200}


def train(folder, tool=sharpness, **options) -> Run:
    recorder = GradientRecorder()
    trainer = build_trainer(folder, tools=[tool], callbacks=[recorder], **policy_with_tools(), **options)
    with_script(trainer, tool.__name__)
    trainer.train()
    logs = [line for line in trainer.state.log_history if "loss" in line]
    return Run(trainer, dict(trainer.model.named_parameters()), recorder.steps, logs)


def test_text_tool(tmp_path):
    on, off = (train(tmp_path, max_steps=2, **terms) for terms in (ON, OFF))
    stock = train(tmp_path, max_steps=2, stock=True)
    assert largest_difference(off.parameters, stock.parameters) == 0
    assert largest_difference(on.parameters, off.parameters) > 1e-5
    assert on.logs[0]["tools/call_frequency"] == 0.5
    assert on.logs[0]["tools/failure_frequency"] == 0
    check_logs(on)


def test_image_tool_is_refused_with_the_perception_loss(tmp_path):
    with pytest.raises(ValueError, match=r"tools.*perception_gamma"):
        train(tmp_path, zoom, **ON)


def test_image_tool_without_a_degraded_view_is_stock_grpo_with_entropy(tmp_path):
    terms = OFF | {"entropy_original_coef": 0.02, "uncertainty_alpha": 1.0}
    on, off = train(tmp_path, zoom, **terms), train(tmp_path, zoom, **OFF)
    stock = train(tmp_path, zoom, stock=True)
    assert largest_difference(off.parameters, stock.parameters) == 0
    assert relative_difference(on.gradients[0], off.gradients[0]) > 1e-3
    assert on.logs[0]["uncertainty/weight_min"] < 1


class Easel:
    """An environment that does nothing."""

    def reset(self, **kwargs) -> None:
        pass

    def look(self, part: str) -> str:
        """
        Looks at a part of the picture.

        Args:
            part: Name of the part.

        Returns:
            What is seen.
        """
        return part


def test_environment_is_refused_with_the_perception_loss(tmp_path):
    options = policy_with_tools() | {"environment_factory": Easel}
    with pytest.raises(ValueError, match=r"environment_factory can change prompts and images.*set perception_gamma"):
        build_trainer(tmp_path, **options, **ON)
    build_trainer(tmp_path, **options, **OFF | {"uncertainty_alpha": 1.0})
