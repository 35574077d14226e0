"""GPUs: does torch see them, do they know bfloat16, are they free, and which attention runs on them."""

from pathlib import Path

from ..run_facts.machine import driver_version
from .finding import Finding, Plan, ok, problem, warning

_FREE = 0.9  # below this share of a GPU's memory somebody else is using it
_AMPERE = (8, 0)  # FlashAttention 2 and fast bfloat16 begin here


def check_gpu(plan: Plan) -> list[Finding]:
    """Devices, driver, bfloat16 and free memory."""
    import torch

    if plan.uses_cpu:
        return [ok("GPU", "the recipe runs on the CPU (use_cpu)")]
    if not torch.cuda.is_available():
        return [_no_gpu()]
    count = torch.cuda.device_count()
    found = []
    for index in range(count):
        device = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        text = f"{index}: {device.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        if free < _FREE * total:
            advice = "see nvidia-smi for who uses it; choose other GPUs by CUDA_VISIBLE_DEVICES"
            found.append(warning("GPU", text, advice))
        else:
            found.append(ok("GPU", text))
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    found.append(
        ok("driver", f"{driver_version() or 'of unknown version'}, runs the {build} that torch was built with")
    )
    return [*found, _bfloat16(count, wanted=plan.args is None or plan.args.bf16)]


def _no_gpu() -> Finding:
    import torch

    driver = driver_version()
    if driver is None and not any(Path("/dev").glob("nvidia[0-9]*")):
        return warning(
            "GPU",
            "none; the bundled toy policy trains on the CPU, a model of billions of parameters does not",
            "take a machine with a GPU; for the toy policy set bf16 to false and use_cpu to true",
        )
    if torch.version.cuda is None:
        return problem("GPU", "there is one, but this torch is built for the CPU", "install torch's CUDA build")
    try:
        torch.cuda.init()
        reason = "torch.cuda.is_available() says no"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
    return problem(
        "GPU",
        f"there is one (driver {driver}), but torch, built with CUDA {torch.version.cuda}, can't use it: {reason}",
        "update the driver, or install a torch that is built for an older CUDA; look at CUDA_VISIBLE_DEVICES too",
    )


def _bfloat16(count: int, *, wanted: bool) -> Finding:
    import torch

    slow = [index for index in range(count) if torch.cuda.get_device_capability(index) < _AMPERE]
    if not slow:
        return ok("bfloat16", "supported")
    text = f"GPU {', '.join(map(str, slow))} only emulates it"
    advice = "set bf16 to false, dtype to float32 or float16 with fp16 true, or take a GPU of compute capability 8.0"
    return problem("bfloat16", text, advice) if wanted else ok("bfloat16", f"{text}; it is not used")


def check_attention(plan: Plan) -> list[Finding]:
    """Attention implementations that can be named, and whether the recipe's is among them."""
    import torch
    from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available

    cuda = torch.cuda.is_available()
    able = cuda and all(torch.cuda.get_device_capability(i) >= _AMPERE for i in range(torch.cuda.device_count()))
    usable = {
        "eager": True,
        "sdpa": True,
        "flex_attention": bool(is_torch_flex_attn_available()),
        "flash_attention_2": able and bool(is_flash_attn_2_available()),
    }
    text = ", ".join(name for name, there in usable.items() if there)
    missing = [name for name, there in usable.items() if not there]
    wanted = plan.attention
    if wanted in missing:
        if wanted == "flash_attention_2" and not able:  # a package would not help
            reason = "needs a GPU of compute capability 8.0 or more"
        else:
            reason = "is not installed, or not for this torch"
        text, advice = f"the recipe asks for {wanted}, which {reason}", "set attn_implementation to sdpa"
        if wanted == "flash_attention_2" and able:
            advice += ", or pip install flash-attn --no-build-isolation"
        return [problem("attention", text, advice)]
    if wanted is None:
        return [ok("attention", f"{text}; without attn_implementation transformers takes sdpa")]
    if wanted not in usable:
        advice = "check the name; transformers fetches a kernel like kernels-community/flash-attn2 from the Hub"
        return [warning("attention", f"{wanted} is not among {text}", advice)]
    return [ok("attention", f"{text}; the recipe takes {wanted}")]
