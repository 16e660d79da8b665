"""Draws the tutorial's pictures anew: ``python scripts/tutorial_figures``.

Each page is run first, and what its pictures plot is what the page computed. The files come out the same, byte for
byte, with the versions of constraints.txt.
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
