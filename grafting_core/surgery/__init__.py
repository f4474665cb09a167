"""Replacing operators of a backbone, and undoing it."""
