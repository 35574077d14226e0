"""VLM judges that look at a pair and say whether a person would see the difference."""

import base64
import io
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

JUDGE_PROMPT = (
    "The first picture is an original, the second one is the same picture after processing that may have degraded it. "
    "Look for noise, blur, blocks, rings, bands, lost detail and changes of brightness, contrast or colour. If a "
    "person who sees both side by side would notice a difference in quality, answer <answer>different</answer>, "
    "otherwise answer <answer>same</answer>."
)
"""Question put to the judge about an original and its degraded view, in this order."""

RETRIES = 3
"""How often an endpoint is asked about one pair before its failure counts."""

FAILURES_IN_A_ROW = 8
"""Pairs on which a judge fails one after another before it is not asked any more in this run."""

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class JudgeError(Exception):
    """The judge gave no verdict on a pair; the message says why."""


class Verdict(NamedTuple):
    """
    What a judge said.

    Args:
        different (`bool`):
            Whether the degradation is visible.
        answer (`str`):
            The judge's own words.
    """

    different: bool
    answer: str


Judge = Callable[[Image.Image, Image.Image], Verdict]
"""Takes original and view, returns a [`Verdict`] or raises [`JudgeError`]."""


@dataclass(frozen=True)
class JudgeSettings:
    """
    Which judge is asked.

    Args:
        model (`str`):
            A transformers checkpoint, or the name of a model behind `base_url`.
        base_url (`str`, *optional*):
            OpenAI-compatible endpoint, e.g. `http://127.0.0.1:8000/v1`.
        key_variable (`str`, *optional*):
            Name of the environment variable that holds the endpoint's key. By default no key is sent, and never one
            that was not named.
        max_tokens (`int`, *optional*, defaults to `512`):
            Longest answer.
        timeout (`float`, *optional*, defaults to `120`):
            Seconds that an endpoint may take.
        concurrency (`int`, *optional*, defaults to `4`):
            Pairs that each worker asks an endpoint about at the same time.
    """

    model: str
    base_url: str | None = None
    key_variable: str | None = None
    max_tokens: int = 512
    timeout: float = 120.0
    concurrency: int = 4

    def __post_init__(self):
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"The judge's URL must begin with http:// or https://, got {self.base_url!r}.")
        if self.key_variable is not None and not os.environ.get(self.key_variable):
            raise ValueError(f"The environment variable {self.key_variable} is to hold the judge's key, but is empty.")
        if min(self.max_tokens, self.timeout, self.concurrency) <= 0:
            raise ValueError("The judge's max_tokens, timeout and concurrency must be above 0.")


def build_judge(settings: JudgeSettings) -> Judge:
    """
    Builds the judge that the settings name.

    Args:
        settings ([`JudgeSettings`]):
            With `base_url` an endpoint, without a local checkpoint.

    Returns:
        `Callable`: See `Judge`.
    """
    asked = _endpoint(settings) if settings.base_url is not None else _checkpoint(settings)
    return _giving_up(asked)


def parse_verdict(answer: str) -> Verdict:
    """
    Reads a judge's answer: its last `<answer>` element, or the whole text where there is none, must be `same` or
    `different` but for case, white space, quotes and a full stop.

    Args:
        answer (`str`):
            What the judge wrote.

    Returns:
        [`Verdict`]

    Raises:
        [`JudgeError`]: It says neither.
    """
    answers = _ANSWER.findall(answer)
    word = (answers[-1] if answers else answer).strip(" \t\r\n.\"'*").lower()
    if word not in ("same", "different"):
        raise JudgeError(f"the judge's answer says neither same nor different: {answer[:200]!r}")
    return Verdict(word == "different", answer)


def _giving_up(asked: Judge) -> Judge:
    lock, failures = threading.Lock(), 0

    def judge(original: Image.Image, view: Image.Image) -> Verdict:
        """Asks, unless too many pairs in a row have failed."""
        nonlocal failures
        if failures >= FAILURES_IN_A_ROW:
            raise JudgeError(f"not asked: the judge had failed on {FAILURES_IN_A_ROW} pairs in a row")
        try:
            verdict = asked(original, view)
        except JudgeError:
            with lock:
                failures += 1
            raise
        failures = 0
        return verdict

    return judge


def _endpoint(settings: JudgeSettings) -> Judge:
    from huggingface_hub import InferenceClient, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.is_offline_mode():
        raise ValueError(
            "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so that huggingface_hub reaches no endpoint, not even on "
            "this machine: unset both to ask the judge."
        )
    # Without a key of its own the client would send the user's Hugging Face token to whatever host this is.
    key = os.environ[settings.key_variable] if settings.key_variable else "EMPTY"
    client = InferenceClient(base_url=settings.base_url, api_key=key, timeout=settings.timeout)

    def ask(original: Image.Image, view: Image.Image) -> Verdict:
        """Asks the endpoint about one pair, again where it failed in passing."""
        images: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _data_url(image)}} for image in (original, view)
        ]
        message = {"role": "user", "content": [*images, {"type": "text", "text": JUDGE_PROMPT}]}
        for attempt in range(RETRIES):
            if attempt:
                time.sleep(2.0 ** (attempt - 1))
            try:
                reply = client.chat.completions.create(
                    model=settings.model, messages=[message], temperature=0.0, max_tokens=settings.max_tokens
                )
                return parse_verdict(reply.choices[0].message.content or "")
            except JudgeError:
                raise  # at temperature 0 the same answer would come again
            except HfHubHTTPError as error:
                failure = f"{settings.base_url} answered {error.response.status_code}: {str(error)[:300]}"
                if error.response.status_code not in (408, 409, 425, 429) and error.response.status_code < 500:
                    break
            except Exception as error:  # the HTTP library's own kinds, and answers in another form
                failure = f"{settings.base_url}: {type(error).__name__}: {str(error)[:300]}"
        raise JudgeError(failure)

    return ask


def _checkpoint(settings: JudgeSettings) -> Judge:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(settings.model)
        model = AutoModelForImageTextToText.from_pretrained(settings.model, dtype="auto").eval()
    except (OSError, ValueError) as error:
        raise OSError(
            f"The judge {settings.model} can't be loaded: name a folder or a repository with a vision-language model, "
            f"or its endpoint by --judge-url. ({error})"
        ) from error
    if torch.cuda.is_available():
        model = model.to("cuda")
    lock = threading.Lock()
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": JUDGE_PROMPT}]

    def generate(original: Image.Image, view: Image.Image) -> str:
        with lock, torch.inference_mode():
            text = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            inputs = processor(images=[[original, view]], text=[text], return_tensors="pt").to(model.device)
            output = model.generate(**inputs, max_new_tokens=settings.max_tokens, do_sample=False)
        return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]

    def ask(original: Image.Image, view: Image.Image) -> Verdict:
        """Asks the checkpoint about one pair."""
        try:
            answer = generate(original, view)
        except Exception as error:  # out of memory, a picture that the processor refuses: one pair, not the run
            raise JudgeError(f"{settings.model}: {type(error).__name__}: {str(error)[:300]}") from error
        return parse_verdict(answer)

    return ask


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
