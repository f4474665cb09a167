"""Stage 2: finetuning, optimisers and what training reports."""
