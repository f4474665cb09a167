"""Grafts as folders that load without a lab, and without this package."""
