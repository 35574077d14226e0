"""Images in conversations: TRL's placement without importing TRL."""

import subprocess
import sys

import pytest
from PIL import Image
from trl.data_utils import prepare_multimodal_messages

from q_hawkeye_trl.data.messages import message_images, with_images

A, B, C = (Image.new("RGB", (2, 2), colour) for colour in ("red", "green", "blue"))
PLACE, HELD = {"type": "image"}, {"type": "image", "image": C}
TEXT = {"type": "text", "text": "Rate it."}

PROMPTS = {
    "plain text": ([{"role": "user", "content": "Rate it."}], [A]),
    "several images": ([{"role": "user", "content": "Compare."}], [A, B]),
    "no image": ([{"role": "user", "content": "Hello."}], []),
    "system and a second turn": (
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Rate it."},
            {"role": "assistant", "content": "3"},
            {"role": "user", "content": "Sure?"},
        ],
        [A],
    ),
    "places of its own": ([{"role": "user", "content": [TEXT, PLACE, TEXT, PLACE]}], [A, B]),
    "an image in the prompt": ([{"role": "user", "content": [HELD, TEXT]}], []),
    "an image in the prompt and a place": ([{"role": "user", "content": [HELD, PLACE, TEXT]}], [B]),
    "tool calls": (
        [
            {"role": "user", "content": "Rate it."},
            {"role": "assistant", "tool_calls": [{"type": "function"}], "content": None},
            {"role": "tool", "name": "zoom", "content": [PLACE]},
        ],
        [A],
    ),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_images_are_placed_as_trl_places_them(case):
    prompt, images = PROMPTS[case]
    messages = with_images({"prompt": prompt, "images": images})
    assert messages == prepare_multimodal_messages(prompt, images=images)
    if len(images) == 1:
        assert with_images({"prompt": prompt, "image": images[0]}) == messages
    if case != "tool calls":
        inside = [C] if "an image" in case else []
        assert all(a is b for a, b in zip(message_images(messages), inside + images, strict=True))


@pytest.mark.parametrize("images", [[], [A], [A, B, C]])
def test_another_number_of_images_than_places_is_refused(images):
    with pytest.raises(ValueError, match=rf"2.*{len(images)}"):
        with_images({"prompt": [{"role": "user", "content": [PLACE, PLACE]}], "images": images})


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("images messages degradations", ("trl", "datasets", "torch", "transformers")),
        ("readers preparation mix", ("trl", "torch", "transformers")),
    ],
)
def test_light_modules_import_no_heavy_packages(modules, unwanted):
    names = ", ".join(f"q_hawkeye_trl.data.{name}" for name in modules.split())
    code = f"import sys, {names}; print([name for name in {unwanted} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
