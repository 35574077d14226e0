"""Plans for the doctor's checks, and their findings."""

from types import SimpleNamespace

from datasets import Dataset, DatasetDict

from q_hawkeye_trl.doctor import Finding, Plan
from tiny_models import tiny_dataset


def findings(check, plan: Plan | None = None) -> list[Finding]:
    """The findings of a check; those that are not ok carry advice, the others don't."""
    found = list(check(plan or Plan()))
    assert all(bool(each.advice) == (each.level != "ok") for each in found), found
    return found


def levels(check, plan: Plan | None = None) -> list[str]:
    return [finding.level for finding in findings(check, plan)]


def planned(model=None, output_dir=None, script_args=None, model_args=None, **settings) -> Plan:
    """A plan with a recipe's settings."""
    defaults = {"use_cpu": False, "bf16": True, "use_vllm": False, "deepspeed": None, "optim": "adamw_torch"}
    defaults |= {"use_liger_kernel": False, "model_init_kwargs": None, "save_only_model": False}
    args = SimpleNamespace(**defaults | settings)
    return Plan(model=model, output_dir=output_dir, args=args, model_args=model_args, script_args=script_args)


def three_splits(**options) -> dict[str, Dataset]:
    return {name: tiny_dataset(4, seed=seed, **options) for seed, name in enumerate(("train", "validation", "test"))}


def saved_splits(folder, **splits) -> Plan:
    DatasetDict(splits).save_to_disk(folder)
    return Plan(data=str(folder))
