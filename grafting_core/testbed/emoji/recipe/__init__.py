"""Recipe of the emoji testbed's assets: `python -m grafting_core.testbed.emoji.recipe`."""
