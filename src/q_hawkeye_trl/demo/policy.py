"""The bundled demo policy: a tiny Qwen2.5-VL that sees noise, blur, JPEG compression and darkness."""

from pathlib import Path


def demo_policy_path() -> Path:
    """
    Return the folder of the bundled policy, inside the installed package.

    `from_pretrained` of `AutoProcessor` and `AutoModelForImageTextToText` loads it without a network, and
    `provenance.json` records how it was made.
    """
    return Path(__file__).parent / "weights"
