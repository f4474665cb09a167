"""Testbed: a small trained model and its data, shipped with the package."""
