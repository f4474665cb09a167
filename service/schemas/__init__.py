"""Requests, responses and states; no SQL."""
