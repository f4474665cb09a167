"""Diffusion transformers: loading, capture of activations, fast forward."""
