"""``python -m assay.audits.ab``: trains a tiny model under two patches, and writes curves, numbers and a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from assay.audits.ab import arms, page, plot
from assay.audits.ab.comparison import Comparison, compare, dump, load
from assay.audits.ab.model import FAMILIES
from assay.audits.ab.train import Settings

DOCS = Path(__file__).resolve().parents[2] / "docs"
OWN, USERS = "what-3d-positions-are-worth", "ab"
"""What files are called: for the project's own question, and for two patches of a user."""
OWN_FAMILIES = ("qwen3_vl", "qwen2_5_vl")
"""Interleaved and chunked sections: they turn the axes differently."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, or with ``--render`` only draw results again; the exit status. Bad usage leaves with 2."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        results = _loaded(given.render or ())
        every, seeds = _asked(given)
    except (ValueError, TypeError, LookupError, ImportError, AttributeError, OSError) as mistake:
        parser.error(f"{type(mistake).__name__}: {mistake}")
    own = page.is_own(results) if results else (given.a, given.b) == page.POSITIONS
    stem, folder = OWN if own else USERS, Path(given.out or _folder(given))
    if results:
        write(results, folder, stem)
    for settings in () if results else every:  # what is trained is written before the next family begins
        results.append(compare(settings, given.a, given.b, seeds, processes=given.processes))
        write(results, folder, stem)
    sys.stdout.write(f"{folder / stem}.md\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nox -s ab --", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--a", default=arms.TRUE, metavar="PKG.MOD:APPLY", help="a patch of code, model or batch")
    parser.add_argument("--b", default=arms.COPIED, metavar="PKG.MOD:APPLY", help="the patch it is compared with")
    parser.add_argument("--family", action="append", choices=FAMILIES, help=f"repeatable; {', '.join(OWN_FAMILIES)}")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds, counted from 0; 3")
    parser.add_argument("--steps", type=int, metavar="N", help=f"steps of each training; {Settings.steps}")
    parser.add_argument("--exam", type=int, metavar="N", help=f"batches that a model is asked; {Settings.exam}")
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2), help="1: one side after the other; 2")
    parser.add_argument("--out", metavar="FOLDER", help="where to write; docs for a plain run, else ab-report")
    parser.add_argument("--render", nargs="+", metavar="JSON", help="train nothing: plots and page of these results")
    return parser


def _asked(given: argparse.Namespace) -> tuple[list[Settings], range]:
    """Settings for each family, and the seeds. Raises for what cannot be, before anything is trained."""
    seeds = range(3 if given.seeds is None else given.seeds)
    if not seeds:
        message = f"--seeds: expected at least 1, got {given.seeds}"
        raise ValueError(message)
    for ref in (given.a, given.b):
        arms.on_batch(ref)
    sizes = {name: getattr(given, name) for name in ("steps", "exam") if getattr(given, name) is not None}
    return [Settings(family=family, **sizes) for family in dict.fromkeys(given.family or OWN_FAMILIES)], seeds


def _folder(given: argparse.Namespace) -> str | Path:
    """Beside the results that are drawn again. The project's page is written by a plain run, not by a shorter one."""
    if given.render:
        return Path(given.render[0]).parent
    plain = (given.a, given.b) == page.POSITIONS and not any((given.family, given.seeds, given.steps, given.exam))
    return DOCS if plain and DOCS.is_dir() else "ab-report"  # an installed package has no pages


def _loaded(paths: Sequence[str]) -> list[Comparison]:
    return [load(Path(path).read_text(encoding="utf-8")) for path in paths]


def write(found: Sequence[Comparison], folder: Path, stem: str) -> None:
    """Results, pictures and the page into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files(found, stem).items():
        (folder / name).write_text(text, encoding="utf-8")


def files(found: Sequence[Comparison], stem: str) -> dict[str, str]:
    """What is written, by file name."""
    named = {one.settings.family: one for one in found}
    return {
        **{f"{stem}.{family}.json": dump(one) for family, one in named.items()},
        **{f"{stem}.{family}.svg": plot.render(one) for family, one in named.items()},
        f"{stem}.md": page.render(found, stem),
    }


if __name__ == "__main__":
    sys.exit(main())
