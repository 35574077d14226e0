"""The one prompt and the one parser: rewards, uncertainty, training and inference all read scores here."""

import math
import re

QUALITY_PROMPT = (
    "What is your overall rating on the quality of this picture? The rating should be a float between 1 and 5, "
    "rounded to two decimal places, with 1 representing very poor quality and 5 representing excellent quality. "
    "Reason first, then answer, in this form: <think>your reasoning</think><answer>your rating</answer>"
)
"""Question put to the policy for one image, in training and in inference alike."""

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
    Builds the conversation that asks for the quality of one image, in the form that TRL's data format expects: the
    image itself stands in the dataset's `image` column and TRL puts it in front of the text.

    Args:
        prompt (`str`, *optional*, defaults to `QUALITY_PROMPT`):
            Question to ask.

    Returns:
        `list[dict]`: A conversation of one user message.
    """
    return [{"role": "user", "content": prompt}]


def completion_text(completion: str | list[dict]) -> str:
    """
    Returns the text of one completion as TRL hands it to reward functions.

    Args:
        completion (`str` or `list[dict]`):
            Plain text, or a conversation (list of messages) of which the text of every assistant message counts.

    Returns:
        `str`: The text that the policy wrote.
    """
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
    """
    Returns what stands inside the last closed `<answer>` element, or `None` where there is none.

    Args:
        text (`str`):
            Text of a completion.

    Returns:
        `str` or `None`
    """
    answers = _ANSWER.findall(text)
    return answers[-1] if answers else None


def parse_score(text: str) -> float | None:
    """
    Reads the quality score that a completion states: the plain decimal number (`3.75`, `4`, `4.`, `.5`, `-1.2`; ASCII
    digits, white space around it allowed) of its one closed `<answer>` element.

    Args:
        text (`str`):
            Text of a completion.

    Returns:
        `float` or `None`: The score, which may lie outside [1, 5]: its range is the caller's matter. `None` when there
        is no answer, an open one, other text beside the number, an exponent, anything not finite, or when several
        answers differ.
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
    """
    Tells whether a completion is one `<think>…</think>` followed by one `<answer>number</answer>` and nothing else.

    Args:
        text (`str`):
            Text of a completion.

    Returns:
        `bool`
    """
    return _FORMATTED.fullmatch(text) is not None
