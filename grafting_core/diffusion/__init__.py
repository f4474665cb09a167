"""Noise schedules, objectives, samplers and sampling."""
