"""Latent datasets, image sets and image files."""
