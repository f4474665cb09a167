"""Ends a lab whose supervisor was killed: `python -m service.lab.guardian MARK LAB_ID FOLDER`.

The supervisor holds the other end of standard input. If that closes before the supervisor reports a
complete stop, every process with the mark of this start of the lab is killed; a lab started on the folder
later has another id and is not touched.
"""

import signal
import sys
from pathlib import Path

from service.lab.address import forget_address, read_address
from service.lab.processes import end_strays
from service.lab.scratch import remove_scratch

DONE = b"done\n"


def main() -> int:
    """Wait for the supervisor's end."""
    mark, lab_id, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() == DONE:
        return 0
    end_strays(mark, instance=lab_id)
    address = read_address(folder)
    if address is not None and address.lab_id == lab_id:
        remove_scratch(address.scratch)
        forget_address(folder, lab_id)
    return 0


if __name__ == "__main__":
    sys.exit(main())
