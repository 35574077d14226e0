"""Answers of a policy: one engine for validation, held-out figures, scoring and evaluation."""
