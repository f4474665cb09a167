"""Paths of a study's report; a separate module, as the one that renders it loads plotting libraries."""

FIGURES = ("pareto", "steps", "screening", "history", "parallel", "importances", "map")
REPORT_FILES = ("report.md", "report.html", *(f"{name}.png" for name in FIGURES))


def report_folder(study_id: str) -> str:
    """Return the report's folder relative to the storage root."""
    return f"studies/{study_id}"
