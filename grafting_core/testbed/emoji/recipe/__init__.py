"""How the assets of the emoji testbed were made: `python -m grafting_core.testbed.emoji.recipe`."""
