"""Studies: proposing, promoting, reporting."""
