"""Stage 1: new operators are trained to match the ones that they replace."""
