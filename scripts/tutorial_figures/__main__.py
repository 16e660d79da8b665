"""Redraws the tutorial's pictures: ``python scripts/tutorial_figures``.

Each page is run first; its pictures plot the values that the page computed. With the versions of constraints.txt the
files are reproduced byte for byte.
"""

import argparse
import sys
from pathlib import Path

from artists import ARTISTS

from sibp.tutorial.pages import run

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Writes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "tutorial", help="folder for the files")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for stem, artist in ARTISTS.items():
        names, _ = run(ROOT / "docs" / "tutorial" / f"{stem}.md")
        pictures = artist(names)
        for name, svg in pictures.items():
            (folder / name).write_text(svg, encoding="utf-8")
        print(f"{stem}: {', '.join(pictures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
