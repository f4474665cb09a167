"""Latent data sets, image sets and image files."""
