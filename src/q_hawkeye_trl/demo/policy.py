"""The bundled demo policy: a tiny Qwen2.5-VL that sees noise, blur, JPEG compression and darkness."""

from pathlib import Path


def demo_policy_path() -> Path:
    """
    Returns the folder of the bundled policy. `AutoProcessor.from_pretrained` and
    `AutoModelForImageTextToText.from_pretrained` load it without a network; `provenance.json` in it says how it was
    made.

    Returns:
        `Path`: Folder inside the installed package.
    """
    return Path(__file__).parent / "weights"
