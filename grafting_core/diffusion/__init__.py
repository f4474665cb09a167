"""Noise schedules, samplers and sampling."""
