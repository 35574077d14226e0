"""Degraded pairs on disk: made, measured, judged, strengthened, reviewed by people."""
