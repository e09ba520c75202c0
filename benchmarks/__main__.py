"""``python -m assay.benchmarks``: one run of the comparison, into a JSON file, a table and plots.

On a machine with a GPU the full grid, in less than eight minutes; without one what runs on a CPU. With
``TRITON_INTERPRET=1`` and ``--grid tiny`` a rehearsal of the GPU's run, whose times mean nothing.

``comparison.json`` is written after each shape: a run that is interrupted, or stopped at somebody's limit, keeps what
it has measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assay.benchmarks import compare, machine, pages
from assay.benchmarks.nouns import Comparison

SECONDS = 430.0
REHEARSAL = 3600.0
"""Nobody waits for it: everything is gone through, however slow the machine."""
GRACE = 45.0
"""Seconds after its time at which a run that hangs is ended: a kernel may wait for ever, and Python with it."""
INTERRUPTED, HUNG = 130, 124
"""Exit statuses, as shells and ``timeout`` have them."""


def main(arguments: list[str] | None = None) -> int:
    """Run and write; the table is printed last."""
    parser = argparse.ArgumentParser(prog="python -m assay.benchmarks", description=__doc__)
    parser.add_argument("--grid", choices=("full", "small", "tiny"), default="")
    parser.add_argument("--operation", action="append", default=[], choices=compare.operation_names())
    parser.add_argument("--provider", action="append", default=[], metavar="NAME")
    parser.add_argument("--seconds", type=float, help=f"of the whole run; {SECONDS:.0f}, and an hour for a rehearsal")
    parser.add_argument("--out", type=Path, default=Path("bench-report"), metavar="FOLDER")
    told = parser.parse_args(arguments)
    grid = told.grid or {"cuda": "full", "cpu": "small", "interpreter": "tiny"}[machine.place()]
    seconds = told.seconds or (REHEARSAL if grid == "tiny" else SECONDS)
    journal = _Journal(told.out)
    alarm = threading.Timer(seconds + GRACE, journal.give_up)
    alarm.daemon = True
    alarm.start()
    try:
        with _stoppable():
            journal.keep(
                compare.compare(grid, only=told.operation, who=told.provider, seconds=seconds, keep=journal.keep)
            )
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        journal.write("it was interrupted")
        return INTERRUPTED
    finally:
        alarm.cancel()
    return journal.write()


class _Journal:
    """What is known so far, on the disk too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: Comparison | None = None

    def keep(self, found: Comparison) -> None:
        """Store it, whole or not at all."""
        self.found = found
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / "comparison.json.new"
        fresh.write_text(json.dumps(found.to_json(), indent=1) + "\n")
        fresh.replace(self.folder / "comparison.json")

    def write(self, cut: str = "") -> int:
        """The page and the pictures; 1 where the run ended before its end, which ``cut`` may say why."""
        if self.found is None:
            return 1
        if cut:
            self.keep(dataclasses.replace(self.found, cut=cut))
        for path in pages.write(self.found, self.folder):
            print(path)
        print("\n".join(pages.summary(self.found)), flush=True)
        return 1 if self.found.cut else 0

    def give_up(self) -> None:
        """From another thread: write what there is and end the process, which does not answer any more."""
        print("no answer within the time: ended", file=sys.stderr)
        try:
            self.write("a call did not come back")
        finally:
            os._exit(HUNG)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Being told to end is as good as being interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
