"""Storage, artifacts under content keys, the bank of distilled operators."""
