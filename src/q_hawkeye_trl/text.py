"""The default prompt, the default parser, and the text of completions."""

import math
import re

QUALITY_PROMPT = (
    "What is your overall rating on the quality of this picture? The rating should be a float between 1 and 5, "
    "rounded to two decimal places, with 1 representing very poor quality and 5 representing excellent quality. "
    "Reason first, then answer, in this form: <think>your reasoning</think><answer>your rating</answer>"
)
"""The default question for one image, in training and inference."""

QUALITY_SCALE = (1.0, 5.0)
"""Scale that the question names."""

# ASCII digits only: `\d` would accept digits of other scripts, which float() then reads as if they were plain.
# One way to match each number: `[0-9]+\.?[0-9]*` would backtrack quadratically over a long run of digits.
_NUMBER = r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_SCORE = re.compile(rf"\s*({_NUMBER})\s*")
_FORMATTED = re.compile(
    rf"\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*<answer>\s*{_NUMBER}\s*</answer>\s*", re.DOTALL
)


def quality_messages(prompt: str = QUALITY_PROMPT) -> list[dict]:
    """
    Build the conversation that asks for the quality of one image, in TRL's form.

    The image itself is in the dataset's `image` column; TRL puts it in front of the text.

    Args:
        prompt (`str`, *optional*, defaults to `QUALITY_PROMPT`):
            Question to ask.

    Returns:
        `list[dict]`: A conversation of one user message.
    """
    return [{"role": "user", "content": prompt}]


def completion_text(completion: str | list[dict]) -> str:
    """The text of a completion as TRL hands it to rewards: a string, or messages whose assistant text counts."""
    if isinstance(completion, str):
        return completion
    texts = []
    for message in completion:
        if message["role"] != "assistant":
            continue
        content = message["content"]
        if isinstance(content, str):
            texts.append(content)
        else:  # blocks of a multimodal message; None where a message only calls tools
            texts.extend(block["text"] for block in content or [] if block["type"] == "text")
    return "\n".join(texts)


def answer_text(text: str) -> str | None:
    """The content of the last closed `<answer>` element, or `None`."""
    answers = _ANSWER.findall(text)
    return answers[-1] if answers else None


def parse_score(text: str) -> float | None:
    """
    Read the score of a completion: the plain decimal number of its one closed `<answer>` element.

    Numbers are `3.75`, `4`, `4.`, `.5` or `-1.2`, in ASCII digits, with optional white space around them.

    Args:
        text (`str`):
            Text of a completion.

    Returns:
        `float` or `None`: The score, on any scale. `None` if there is no answer, an open one, other text beside the
        number, an exponent, a number that is not finite, or several answers that differ.
    """
    opened = text.count("<answer>")
    if opened != text.count("</answer>"):
        return None
    answers = _ANSWER.findall(text)
    if len(answers) != opened:  # equal counts, but no pairs: `</answer><answer>3</answer><answer>`
        return None
    values = set()
    for answer in answers:
        match = _SCORE.fullmatch(answer)
        if match is None:
            return None
        values.add(float(match.group(1)))
    if len(values) != 1:
        return None
    value = values.pop()
    return value if math.isfinite(value) else None


def has_answer_format(text: str) -> bool:
    """Whether a completion is one `<think>…</think>` followed by one `<answer>number</answer>` and nothing else."""
    return _FORMATTED.fullmatch(text) is not None
