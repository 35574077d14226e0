"""Bad input gets one clear message, before any time is spent on it."""

import pytest
from datasets import Dataset
from trl import GRPOConfig

from harness import OFF, build_trainer
from q_hawkeye_trl import HawkeyeGRPOConfig, HawkeyeGRPOTrainer
from tiny_models import tiny_dataset, tiny_policy

CONFIG_ERRORS = {
    "weighting": ({"uncertainty_weighting": "cubic"}, "uncertainty_weighting is 'cubic'.*exponential, linear"),
    "unparsed": ({"uncertainty_unparsed": "ignore"}, "penalize, exclude"),
    "schedule": ({"perception_gamma_schedule": "step"}, "cosine, linear, constant"),
    "gradient": ({"perception_gradient": "degraded"}, "both, original"),
    "estimator": ({"entropy_estimator": "guess"}, "exact, sampled"),
    "shared prefix": ({"shared_prefix": "maybe"}, "off, auto, on"),
    "negative alpha": ({"uncertainty_alpha": -0.1}, "uncertainty_alpha is -0.1.*at least 0"),
    "nan gamma": ({"perception_gamma": float("nan")}, "perception_gamma is nan"),
    "infinite entropy": ({"entropy_original_coef": float("inf")}, "entropy_original_coef is inf"),
    "zero clip": ({"perception_kl_clip": 0.0}, "perception_kl_clip is 0.0"),
    "scale": ({"score_min": 5.0, "score_max": 1.0}, "score_min 5.0.*score_max 1.0"),
    "linear alpha": ({"uncertainty_weighting": "linear", "uncertainty_alpha": 1.5}, "negative above 1"),
    "unknown degradation": ({"degradations": ["gaussian_blurr"]}, "gaussian_blurr.*gaussian_blur"),
    "no degradation": ({"degradations": []}, "degradations is empty"),
    "degradation without preset": ({"degradations": ["motion_blur"]}, "motion_blur@"),
    "detached eta2": ({"perception_gradient": "original"}, "no gradient.*perception_gradient to both"),
    "sampled eta2": ({"entropy_estimator": "sampled"}, "cross-entropy.*entropy_estimator to exact"),
    "one rollout": ({"num_generations": 1}, "at least 2 generations"),
    "seed": ({"degradation_seed": -1}, "degradation_seed is -1"),
}


@pytest.mark.parametrize(("options", "message"), CONFIG_ERRORS.values(), ids=CONFIG_ERRORS.keys())
def test_config_refuses(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        HawkeyeGRPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **options)


def test_config_of_stock_grpo_is_refused(tmp_path):
    args = GRPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True)
    with pytest.raises(TypeError, match="GRPOConfig; give a HawkeyeGRPOConfig"):
        HawkeyeGRPOTrainer(model="unused", reward_funcs=[], args=args)


DATASET_ERRORS = {
    "no image": (lambda data: data.remove_columns("image"), "needs images.*columns are prompt, mos, image_id"),
    "both image columns": (lambda data: data.add_column("images", [[]] * len(data)), "both an image and an images"),
    "nan mos": (lambda data: with_mos(data, float("nan")), "mos of row 2 is nan, expected a number in \\[1.0, 5.0\\]"),
    "missing mos": (lambda data: with_mos(data, None), "mos of row 2 is None"),
    "mos of another scale": (lambda data: with_mos(data, 77.4), "mos of row 2 is 77.4.*score_min and score_max"),
}


def with_mos(data: Dataset, value) -> Dataset:
    return data.remove_columns("mos").add_column("mos", [3.0, 2.0, value, 4.0])


@pytest.mark.parametrize(("change", "message"), DATASET_ERRORS.values(), ids=DATASET_ERRORS.keys())
def test_dataset_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(tmp_path, train_dataset=change(tiny_dataset(4)))


def test_evaluation_dataset_is_checked_too(tmp_path):
    with pytest.raises(ValueError, match=r"mos of row 2 is 77.4"):
        build_trainer(tmp_path, eval_dataset={"held_out": with_mos(tiny_dataset(4), 77.4)})


def test_another_scale_is_fine_when_it_is_said(tmp_path):
    data = with_mos(tiny_dataset(4), 77.4)
    trainer = build_trainer(tmp_path, train_dataset=data, score_min=0.0, score_max=100.0)
    assert trainer.args.score_max == 100.0


def test_text_data_is_fine_without_perception(tmp_path):
    trainer = build_trainer(tmp_path, train_dataset=tiny_dataset(4).remove_columns("image"), **OFF)
    assert "image" not in trainer.train_dataset.column_names


def test_degraded_twin_of_another_size_is_refused(tmp_path):
    data = tiny_dataset(2)
    columns = {name: list(data[name]) for name in data.column_names}
    columns["degraded_image"] = [image.resize((56, 84)) for image in columns["image"]]
    trainer = build_trainer(tmp_path, train_dataset=Dataset.from_dict(columns))
    with pytest.raises(ValueError, match=r"picture-0-.*84.*56.*56.*84"):
        trainer.train()


def test_tokenizer_in_place_of_a_processor_is_refused(tmp_path):
    model, processor = tiny_policy("qwen2_5_vl")
    with pytest.raises(ValueError, match="needs a vision-language model with a processor"):
        build_trainer(tmp_path, model=model, processing_class=processor.tokenizer, scripted=None)
