"""What a process does once, as it starts: how it prints, and how fast it imports."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager


def setup_logging() -> None:
    """Time, module and message of everything worth telling, to stderr. It goes into the attempt's log."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")


@contextmanager
def importing() -> Iterator[None]:
    """Import libraries without garbage collection, which takes a fifth of the time and finds nothing.

    What was imported is left out of later collections too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
