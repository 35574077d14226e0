"""Uncertainty- and perception-aware GRPO for image quality assessment, on top of TRL."""
