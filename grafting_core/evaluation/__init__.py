"""Stage 3: metrics, references, cost and sample grids."""
