"""
The parts of the trainer work alone, and a changed release of TRL switches off the parts that it affects.

Run this file against a new release of TRL before allowing it: it also checks every hooked method by its parameters.
"""

from unittest import mock

import pytest
import torch
import trl
from transformers import GenerationMixin
from trl import GRPOTrainer

from harness import OFF, build_trainer, largest_difference, run
from q_hawkeye_trl import trl_compat
from q_hawkeye_trl.checkpointing.checkpoint_files import MANIFEST
from q_hawkeye_trl.checkpointing.exact_resume import ExactResumeMixin
from q_hawkeye_trl.hawkeye_method import HawkeyeMethodTrainer
from q_hawkeye_trl.shared_prefix.shared_prompt import SharedPromptMixin
from q_hawkeye_trl.trl_compat import EXACT_RESUME, GENERATION, GRADIENT_CHECK, HOOKS, METHOD, PROMPT_SHARING


class MethodSharingPrompts(SharedPromptMixin, HawkeyeMethodTrainer):
    pass


class MethodResumingExactly(ExactResumeMixin, HawkeyeMethodTrainer):
    pass


def changed(name: str):
    """TRL with another parameter in one method, which it passes on by its own calls."""
    original = getattr(GRPOTrainer, name)

    def method(self, *args, new_parameter=None, **kwargs):
        return original(self, *args, **kwargs)

    return mock.patch.object(GRPOTrainer, name, method)


@pytest.fixture
def warnings():
    with mock.patch.object(trl_compat.logger, "warning") as warning:
        yield warning


@pytest.mark.parametrize("part", HOOKS)
def test_the_installed_release_has_every_hooked_method_as_expected(part):
    assert trl_compat.changed_hooks(part) is None


@pytest.mark.parametrize("trainer_class", [HawkeyeMethodTrainer, MethodSharingPrompts, MethodResumingExactly])
def test_the_method_gives_the_same_result_with_and_without_each_mixin(tmp_path, trainer_class):
    options = {"max_steps": 2, "optim": "sgd", "max_grad_norm": 0.0, "shared_prefix": "auto"}
    alone = run(tmp_path / "alone", trainer_class=trainer_class, **options)
    whole = run(tmp_path / "whole", **options)
    assert alone.trainer.state.global_step == 2
    assert largest_difference(alone.parameters, whole.parameters) < 1e-6
    assert "perception/kl" in alone.logs[-1]


@pytest.mark.parametrize("mixin", [SharedPromptMixin, ExactResumeMixin])
def test_a_mixin_alone_is_grpo(tmp_path, mixin):
    options = {"optim": "sgd", "max_grad_norm": 0.0}
    ours = run(tmp_path / "ours", trainer_class=mixin, shared_prefix="auto", **options, **OFF)
    stock = run(tmp_path / "stock", stock=True, **options)
    assert largest_difference(ours.parameters, stock.parameters) < 1e-6


@pytest.mark.parametrize("name", HOOKS[METHOD])
def test_a_changed_hook_of_the_method_is_an_error(tmp_path, name):
    with changed(name), pytest.raises(RuntimeError, match=f"{trl.__version__}.*{name}.*new_parameter"):
        build_trainer(tmp_path)


def test_a_trl_before_the_first_supported_one_is_an_error(tmp_path):
    with (
        mock.patch("importlib.metadata.version", return_value="1.15.9"),
        pytest.raises(ImportError, match=r"trl>=1\.16"),
    ):
        build_trainer(tmp_path)


OPTIONAL = [(part, name) for part in (PROMPT_SHARING, EXACT_RESUME, GRADIENT_CHECK) for name in HOOKS[part]]


@pytest.mark.parametrize(("part", "name"), [pair for pair in OPTIONAL if pair[1] not in HOOKS[METHOD]])
def test_a_changed_hook_of_another_part_switches_it_off_with_one_warning(tmp_path, warnings, part, name):
    with changed(name):
        trainer = build_trainer(tmp_path, shared_prefix="auto")
        off = [each for each in (PROMPT_SHARING, EXACT_RESUME, GRADIENT_CHECK) if name in HOOKS[each]]
        assert [call.args[0].count(f"GRPOTrainer.{name} ") for call in warnings.call_args_list] == [1] * len(off)
        assert [trl_compat.is_active(trainer, each) for each in off] == [False] * len(off)
        trainer.train()
    assert trainer.state.global_step == 1
    assert torch.isfinite(next(trainer.model.parameters())).all()


def test_without_exact_resume_transformers_saves_and_resumes(tmp_path, warnings):
    with changed("_run_epoch"):
        run(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
        assert (tmp_path / "checkpoint-1").is_dir()
        assert not (tmp_path / "checkpoint-1" / MANIFEST).exists()
        trainer = build_trainer(tmp_path, max_steps=2)
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2


def test_sharing_that_is_asked_for_is_refused_where_it_can_not_be(tmp_path, warnings):
    with changed("_tokenize_prompts"), pytest.raises(ValueError, match="shared_prefix"):
        build_trainer(tmp_path, shared_prefix="on")


def test_a_changed_generation_switches_sharing_off(tmp_path):
    with mock.patch.object(GenerationMixin, "_prefill", print):
        assert "_prefill" in trl_compat.changed_hooks(GENERATION)
        trainer = build_trainer(tmp_path, shared_prefix="auto", scripted=None)
    assert trainer._shares_prefix == {"train": False, "eval": False}
    trainer.train()


def test_a_method_that_is_gone_counts_as_changed():
    with mock.patch.dict(HOOKS[EXACT_RESUME], {"_no_such_method": ""}):
        assert "_no_such_method" in trl_compat.changed_hooks(EXACT_RESUME)
