"""Frozen descriptions and arithmetic on them, without torch."""
