"""Webhooks: HTTP delivery of messages about ended runs and studies, with retries."""
