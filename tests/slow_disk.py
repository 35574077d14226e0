"""Runs a script on a disk that takes its time, so that a kill can hit a checkpoint in writing. Run by test_crash."""

import runpy
import sys
import time

import safetensors.torch
import torch


def slowed(write, seconds: float):
    def write_slowly(*args, **kwargs):
        time.sleep(seconds)
        return write(*args, **kwargs)

    return write_slowly


def main(seconds: str, script: str, *arguments: str) -> None:
    import transformers.modeling_utils as modeling

    torch.save = slowed(torch.save, float(seconds))
    modeling.safe_save_file = slowed(modeling.safe_save_file, float(seconds))
    safetensors.torch.save_file = slowed(safetensors.torch.save_file, float(seconds))
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
