"""Stage 1: new operators are trained to imitate the ones they replace."""
