"""One module a stage: skip what exists, do what is missing, publish it whole."""
