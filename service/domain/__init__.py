"""Rules of runs, queue, budgets, bank, leaderboard and studies, as functions of a database session."""
