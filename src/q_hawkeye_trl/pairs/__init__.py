"""Degraded pairs on disk: made, measured, judged, strengthened, and reviewed by people."""
