"""Frozen descriptions and their arithmetic, free of torch."""
