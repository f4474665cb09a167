"""The scheduler's wait ends with what is recorded, with its time, or with the process."""

import threading
from unittest.mock import patch

import pytest
from sqlalchemy.exc import OperationalError

from service.db.engine import Database
from service.scheduler.wakeup import ChangeNotifier
from tests.support.runs import queue

FOR_EVER = 10**6


@pytest.fixture
def news(database: Database) -> ChangeNotifier:
    news = ChangeNotifier(database)
    news.begin()
    return news


@pytest.mark.timeout(60)
def test_a_submission_ends_the_wait(news: ChangeNotifier, database: Database) -> None:
    queue(database)
    assert news.await_news(threading.Event(), FOR_EVER) is False


@pytest.mark.timeout(60)
def test_what_a_round_records_itself_is_news_to_the_next(news: ChangeNotifier, database: Database) -> None:
    queue(database)
    news.begin()
    queue(database, layers=[2])
    assert news.await_news(threading.Event(), FOR_EVER) is False


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3])
def test_without_news_the_wait_ends_by_itself(news: ChangeNotifier, seconds: float) -> None:
    assert news.await_news(threading.Event(), seconds) is False


@pytest.mark.timeout(60)
def test_the_end_of_the_process_ends_the_wait(news: ChangeNotifier) -> None:
    ended = threading.Event()
    threading.Timer(0.3, ended.set).start()
    assert news.await_news(ended, FOR_EVER) is True


def test_a_database_that_does_not_answer_has_no_news(news: ChangeNotifier, database: Database) -> None:
    with patch.object(database, "reading", side_effect=OperationalError("", {}, Exception("gone"))):
        assert news.await_news(threading.Event(), 0.3) is False
