"""Stage 2: finetuning, optimisers, and the observer interface of training."""
