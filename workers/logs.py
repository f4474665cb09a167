"""What driver and workers print; both go into their attempt's log."""

import logging


def setup_logging() -> None:
    """Time, module and message of everything worth telling, to stderr."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
