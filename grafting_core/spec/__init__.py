"""What is wanted, as frozen data and pure arithmetic. Nothing here imports torch."""
