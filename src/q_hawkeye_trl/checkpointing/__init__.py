"""Checkpoints that are complete or absent, and a resume that is bitwise identical to an uninterrupted run."""
