"""Studies: search spaces, parsing, rungs, selection, the integer program."""
