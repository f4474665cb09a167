"""Write a study's report to storage, from which the API and its pages serve it."""

import logging

from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.study_tables import StudyRow
from service.domain.study_queries import study_detail
from service.domain.study_report_paths import report_folder
from service.schemas.runs import StudyState
from service.studies.report import report_files

log = logging.getLogger("graftlab.search")


def publish_report(
    database: Database, storage: Storage, study_id: str, becoming: StudyState | None = None
) -> None:
    """Render the report from our tables, with the state that the study has or is about to get."""
    with database.reading() as session:
        detail = study_detail(session, session.get_one(StudyRow, study_id))
    if becoming is not None:
        detail = detail.model_copy(update={"state": becoming})
    for name, content in report_files(detail).items():
        storage.write_bytes(f"{report_folder(study_id)}/{name}", content)
    log.info("study %s: report written", study_id)
