"""Storage, artifacts under content keys, and the bank of distilled operators."""
