"""Feature networks and their table."""
