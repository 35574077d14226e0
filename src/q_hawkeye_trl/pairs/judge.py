"""Vision-language models that judge whether a degradation is visible, and their verdicts on disk."""

import base64
import io
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from ..io.journal import append_line, read_lines
from .pair_manifest import PairKey

JUDGE_PROMPT = (
    "The first picture is an original, the second one is the same picture after processing that may have degraded it. "
    "Look for noise, blur, blocks, rings, bands, lost detail and changes of brightness, contrast or colour. If a "
    "person who sees both side by side would notice a difference in quality, answer <answer>different</answer>, "
    "otherwise answer <answer>same</answer>."
)
"""Question put to the judge about an original and its degraded view, in this order."""

RETRIES = 3
"""Attempts to get an endpoint's answer about one pair."""

FAILURES_IN_A_ROW = 8
"""Consecutive pairs without a verdict after which the judge is not asked again in this run."""

VERDICTS_FILE = "verdicts.jsonl"

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class JudgeError(Exception):
    """The judge returned no verdict on a pair."""


class Verdict(NamedTuple):
    """Whether the judge saw a difference, and its answer in full."""

    different: bool
    answer: str


Judge = Callable[[Image.Image, Image.Image], Verdict]
"""Takes original and view, returns a [`Verdict`] or raises [`JudgeError`]."""


@dataclass(frozen=True)
class JudgeSettings:
    """
    Settings of a judge.

    Args:
        model (`str`):
            A transformers checkpoint, or the name of a model behind `base_url`.
        base_url (`str`, *optional*):
            OpenAI-compatible endpoint, e.g. `http://127.0.0.1:8000/v1`.
        key_variable (`str`, *optional*):
            Environment variable that holds the endpoint's key. By default no key is sent.
        max_tokens (`int`, *optional*, defaults to `512`):
            Maximum length of an answer.
        timeout (`float`, *optional*, defaults to `120`):
            Seconds to wait for an answer of the endpoint.
        concurrency (`int`, *optional*, defaults to `4`):
            Concurrent requests of each worker to the endpoint.
    """

    model: str
    base_url: str | None = None
    key_variable: str | None = None
    max_tokens: int = 512
    timeout: float = 120.0
    concurrency: int = 4

    def __post_init__(self):
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"The judge's URL is {self.base_url!r}; it must begin with http:// or https://.")
        if self.key_variable is not None and not os.environ.get(self.key_variable):
            raise ValueError(f"The environment variable {self.key_variable} is empty; set it to the judge's key.")
        for name in ("max_tokens", "timeout", "concurrency"):
            if getattr(self, name) <= 0:
                raise ValueError(f"The judge's {name} is {getattr(self, name)}; it must be above 0.")


class VerdictStore(dict[PairKey, Verdict]):
    """Verdicts of one judge by pair. Each is on disk as soon as it is set, so that no pair is judged twice."""

    def __init__(self, path: str | os.PathLike, judge: str):
        super().__init__()
        self._path, self._judge, self._lock = path, judge, threading.Lock()
        for line, number, _ in read_lines(path):
            try:
                if line.get("judge") == judge:
                    super().__setitem__(PairKey.of(line), Verdict(line["different"], line["answer"]))
            except KeyError as error:
                raise ValueError(f"{path}, line {number}: a verdict without {error}; remove the line.") from error

    def __setitem__(self, key: PairKey, verdict: Verdict) -> None:
        with self._lock:
            append_line(self._path, {"judge": self._judge, **key._asdict(), **verdict._asdict()})
            super().__setitem__(key, verdict)


def build_judge(settings: JudgeSettings) -> Judge:
    """Return a judge behind an endpoint, or a local checkpoint without `base_url`."""
    ask = _endpoint(settings) if settings.base_url is not None else _checkpoint(settings)
    lock, failures = threading.Lock(), 0

    def judge(original: Image.Image, view: Image.Image) -> Verdict:
        nonlocal failures
        if failures >= FAILURES_IN_A_ROW:
            raise JudgeError(f"not asked: the judge failed on {FAILURES_IN_A_ROW} pairs in a row")
        try:
            verdict = parse_verdict(ask(original, view))
        except JudgeError:
            with lock:
                failures += 1
            raise
        failures = 0
        return verdict

    return judge


def parse_verdict(answer: str) -> Verdict:
    """
    Parse a judge's answer, or raise [`JudgeError`].

    The last `<answer>` element, or the whole text without one, must be `same` or `different`; case, white space,
    quotes and a full stop don't matter.
    """
    answers = _ANSWER.findall(answer)
    word = (answers[-1] if answers else answer).strip(" \t\r\n.\"'*").lower()
    if word not in ("same", "different"):
        raise JudgeError(f"the judge's answer says neither same nor different: {answer[:200]!r}")
    return Verdict(word == "different", answer)


def _endpoint(settings: JudgeSettings) -> Callable[[Image.Image, Image.Image], str]:
    from huggingface_hub import InferenceClient, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.is_offline_mode():
        raise ValueError(
            "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and huggingface_hub then reaches no endpoint, not even on "
            "this machine: unset both to use the endpoint."
        )
    # Without a key the client would send the user's Hugging Face token to the endpoint.
    key = os.environ[settings.key_variable] if settings.key_variable else "EMPTY"
    client = InferenceClient(base_url=settings.base_url, api_key=key, timeout=settings.timeout)

    def ask(original: Image.Image, view: Image.Image) -> str:
        images = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in (original, view)]
        message = {"role": "user", "content": [*images, {"type": "text", "text": JUDGE_PROMPT}]}
        for attempt in range(RETRIES):
            if attempt:
                time.sleep(2.0 ** (attempt - 1))
            try:
                reply = client.chat.completions.create(
                    model=settings.model, messages=[message], temperature=0.0, max_tokens=settings.max_tokens
                )
                return reply.choices[0].message.content or ""
            except HfHubHTTPError as error:
                status = error.response.status_code
                failure = f"{settings.base_url} answered {status}: {str(error)[:300]}"
                if status not in (408, 409, 425, 429) and status < 500:
                    break
            except Exception as error:  # the HTTP library's own kinds, and malformed answers
                failure = f"{settings.base_url}: {type(error).__name__}: {str(error)[:300]}"
        raise JudgeError(failure)

    return ask


def _checkpoint(settings: JudgeSettings) -> Callable[[Image.Image, Image.Image], str]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(settings.model)
        model = AutoModelForImageTextToText.from_pretrained(settings.model, dtype="auto").eval()
    except (OSError, ValueError) as error:
        raise OSError(
            f"The judge {settings.model} can't be loaded ({error}): pass the folder or repository of a "
            "vision-language model, or the URL of its endpoint with --judge-url."
        ) from error
    if torch.cuda.is_available():
        model = model.to("cuda")
    lock = threading.Lock()
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": JUDGE_PROMPT}]
    messages = [{"role": "user", "content": content}]

    def ask(original: Image.Image, view: Image.Image) -> str:
        try:
            with lock, torch.inference_mode():
                text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
                inputs = processor(images=[[original, view]], text=[text], return_tensors="pt").to(model.device)
                output = model.generate(**inputs, max_new_tokens=settings.max_tokens, do_sample=False)
            return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        except Exception as error:  # out of memory, or an image that the processor refuses: one pair, not the run
            raise JudgeError(f"{settings.model}: {type(error).__name__}: {str(error)[:300]}") from error

    return ask


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
