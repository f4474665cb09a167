"""Projection of runs and studies into MLflow."""
