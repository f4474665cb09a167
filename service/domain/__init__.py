"""The rules of runs, queue, budgets, bank, leaderboard and studies, over a session."""
