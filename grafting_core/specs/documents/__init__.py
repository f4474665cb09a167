"""Documents that people write: parsing, checking, explaining."""
