"""Silencing channels in the original, and the proof that a cut equals that."""
