"""What a reader sees: the page of one run, and ``docs/benchmarks.md`` of all that are stored."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from assay.benchmarks import tables
from assay.benchmarks.nouns import Comparison, from_json

RESULTS = Path("benchmarks/results")
PAGE = Path("docs/benchmarks.md")
PICTURES = Path("docs/benchmarks")


def write(found: Comparison, folder: Path) -> list[Path]:
    """The table and the plots of one run. Without matplotlib there are no plots, and it says so."""
    written = [folder / "comparison.md"]
    pictures = _pictures(found, folder)
    written[0].write_text("\n".join(_page(found, [path.name for path in pictures])) + "\n")
    return written + pictures


def _pictures(found: Comparison, folder: Path) -> list[Path]:
    from assay.benchmarks import plots

    folder.mkdir(parents=True, exist_ok=True)
    try:
        return plots.draw(found, folder)
    except ImportError:
        print("no plots: matplotlib is not installed", file=sys.stderr)
        return []


def _page(found: Comparison, pictures: list[str], level: str = "#") -> Iterator[str]:
    yield f"{level} {found.machine['name']}"
    yield ""
    yield from tables.machine_lines(found)
    yield ""
    for name in pictures:
        yield f"![{Path(name).stem.replace('-', ' ')}]({name})"
        yield ""
    for operation, title in tables.TITLES.items():
        yield f"{level}# {title}"
        yield ""
        yield from tables.tables(found, operation)
        yield from tables.absences(found, operation)
        yield ""


def summary(found: Comparison) -> Iterator[str]:
    """A few lines for the terminal: the machine, ours beside the fastest other."""
    yield from tables.machine_lines(found)
    yield from tables.ratio_lines(found)
    yield f"{len(found.rows)} rows; {len(found.absences)} absences, each with its reason in comparison.md"


HEAD = """# What the kernels cost

<!-- Written by `python -m assay.benchmarks.pages` from the JSON files in benchmarks/results. -->

Each provider does the same work on the same tensors. Before it is timed, its value and its gradients pass the laws of
`assay audit` in the dtype that is timed; who does not pass is named and not timed.

* **µs**: median of 30 samples of replayed graphs on a GPU, so that Python's time is not in it, and of calls on a CPU,
  fewer where one takes long; beside it what 20 % and 80 % of the samples did not exceed. Providers take turns, the
  arguments and upstream gradients change from call to call, and before each sample other memory is read, so that no
  cache holds them. Who writes over its input gets it back before each sample, which is not timed. *by events*: the call
  waits for the device and cannot be replayed. **wall µs**: one eager call with all of Python around it.
* **of the ceiling**: the time that the least bytes and operations take at the copy bandwidth and the matrix rate that
  were measured in the same run, over the median. Bytes that are read twice count once.
* **memory**: the most that a forward and a backward pass need beyond the inputs, gradients included.
* **launches, waits**: kernels of one call in this mode, and how often the host waits for the device in it.
* **error**: norm of the difference from float64 over the norm of the truth, of the worst output and of the worst
  gradient (each one by itself is in the JSON); **of rounding**: the worst of them, in units of rounding the truth once.

A provider that makes its gradients in the forward pass has no row for backward by itself.

What the numbers do not say: how a whole training step changes, since layers around a kernel may fuse with it; what
other clocks, power limits or neighbours do; anything of shapes that are not listed.

## Measure here

On a machine with a GPU, from a checkout, without installing it, without nox and without a network:

    PYTHONPATH=src python -m assay.benchmarks --out bench-report

It takes less than eight minutes, says first how long it expects to take, and writes `comparison.json` (after each
shape: a run that is stopped keeps what it has), `comparison.md` and the plots. Shapes for which no time is left, the
least telling ones, are named. `--operation rotary` and `--provider assay` leave out the rest; `--seconds 120` ends
sooner. Without a GPU the same command measures what runs on a CPU, and
`TRITON_INTERPRET=1 PYTHONPATH=src python -m assay.benchmarks --grid tiny` goes through the GPU's run with tiny shapes.

Beside torch, triton and transformers it needs hypothesis, safetensors, packaging and pydantic; matplotlib for the
plots. On a machine that lacks pydantic, its wheels can be carried: `pip download --no-deps pydantic pydantic-core
annotated-types typing-inspection`, then `pip install --no-index --no-deps --target site *.whl` and `site` on
`PYTHONPATH`. Peers are found in the same way: liger-kernel, cut-cross-entropy, flash-linear-attention with fla-core and
einops, quack-kernels. One that is not installed is named as absent.

The tests of the kernels run on a GPU where there is one: `PYTHONPATH=src python -m pytest tests/test_kernel_*.py`.

To store a run, copy its `comparison.json` to `benchmarks/results/NAME.json` and run `nox -s docs`.

`nox -s bench` times what runs on a CPU and says when a commit is slower than the last good one on the same machine.
"""


def all_of_them() -> Iterator[str]:
    """The page of everything that is stored, GPUs first."""
    yield HEAD
    found = [(path, from_json(json.loads(path.read_text()))) for path in sorted(RESULTS.glob("*.json"))]
    found.sort(key=lambda item: (item[1].machine["device"] != "cuda", item[0].name))
    if not any(run.machine["device"] == "cuda" for _, run in found):
        yield "**No run on a GPU is stored yet.** What the compiler says of the kernels is in [kernels.md](kernels.md)."
        yield ""
    for path, run in found:
        pictures = _pictures(run, PICTURES / path.stem)
        yield from _page(run, [f"benchmarks/{path.stem}/{picture.name}" for picture in pictures], level="##")


def main() -> None:
    """Write ``docs/benchmarks.md`` and its plots."""
    PAGE.write_text("\n".join(all_of_them()).rstrip() + "\n")


if __name__ == "__main__":
    main()
