"""Training: what `q-hawkeye train`, `q-hawkeye ablate` and `examples/train_koniq.py` are made of."""
