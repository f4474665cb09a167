"""Writes a study's report to storage, where the API and its pages find it."""

import logging

from grafting_core.storage import Storage
from service.search.publishing_paths import report_folder
from service.search.report import report_files
from service.store.engine import Database
from service.store.study_models import StudyRow
from service.store.study_queries import study_detail

log = logging.getLogger("graftlab.search")


def publish_report(database: Database, storage: Storage, study_id: str) -> None:
    """Render from our tables; the same state gives the same report."""
    with database.reading() as session:
        detail = study_detail(session, session.get_one(StudyRow, study_id))
    for name, content in report_files(detail).items():
        storage.write_bytes(f"{report_folder(study_id)}/{name}", content)
    log.info("study %s: report written", study_id)
