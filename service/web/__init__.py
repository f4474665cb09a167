"""Web pages of the lab."""
