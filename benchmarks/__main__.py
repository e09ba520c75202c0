"""``python -m assay.benchmarks``: one run of the comparison, into a JSON file, a table and plots.

On a machine with a GPU the full grid, in less than eight minutes; without one what runs on a CPU. With
``TRITON_INTERPRET=1`` and ``--grid tiny`` a rehearsal of the GPU's run, whose times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from assay.benchmarks import compare, pages


def main(arguments: list[str] | None = None) -> int:
    """Run and write; the table is printed last."""
    parser = argparse.ArgumentParser(prog="python -m assay.benchmarks", description=__doc__)
    parser.add_argument("--grid", choices=("full", "small", "tiny"), default="")
    parser.add_argument("--operation", action="append", default=[], choices=compare.operation_names())
    parser.add_argument("--provider", action="append", default=[], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=440.0, help="of the whole run; 440")
    parser.add_argument("--out", type=Path, default=Path("bench-report"), metavar="FOLDER")
    told = parser.parse_args(arguments)
    grid = told.grid or {"cuda": "full", "cpu": "small", "interpreter": "tiny"}[compare.place()]
    try:
        found = compare.compare(grid, only=told.operation, who=told.provider, seconds=told.seconds)
    except ValueError as error:
        parser.error(str(error))
    told.out.mkdir(parents=True, exist_ok=True)
    (told.out / "comparison.json").write_text(json.dumps(found.to_json(), indent=1) + "\n")
    for path in pages.write(found, told.out):
        print(path)
    print("\n".join(pages.summary(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
