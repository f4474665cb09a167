"""Documents that users write: reading, validating, explaining errors."""
