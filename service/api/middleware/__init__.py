"""Middleware around every request: logging, authentication, limits."""
