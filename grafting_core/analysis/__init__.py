"""Measurements of a backbone's own operators, and of the effect of replacing them."""
