"""Studies of what else decides how good images are: writes docs/ablations.md.

    python benchmarks/ablations.py

Finished studies stay in ``--output``: a run that was killed goes on with the next one.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import near_ties
import projections
import unwritten_zeros

STUDIES = {"near_ties": near_ties, "unwritten_zeros": unwritten_zeros, "projections": projections}


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``make`` gives, or gave in an earlier run."""
    if not path.exists():
        found = json.dumps(make(), indent=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".tmp").write_text(found + "\n", encoding="utf-8")
        path.with_suffix(".tmp").replace(path)
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/ablations"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    found = {name: kept(args.output / f"{name}.json", study.measure) for name, study in STUDIES.items()}
    text = (Path(__file__).parent / "ablations.md").read_text(encoding="utf-8")
    filled = text.format(**{name: study.table(found[name]) for name, study in STUDIES.items()})
    (args.docs / "ablations.md").write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
