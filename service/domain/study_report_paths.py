"""Where a study's report is; apart from what renders it, which loads plotting libraries."""

FIGURES = ("pareto", "steps", "screening", "history", "parallel", "importances", "map")
REPORT_FILES = ("report.md", "report.html", *(f"{name}.png" for name in FIGURES))


def report_folder(study_id: str) -> str:
    """Relative to the storage root."""
    return f"studies/{study_id}"
