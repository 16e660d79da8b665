"""Screenshots of every page of the built site, or of any pages, at desktop and phone width, light and dark.

    make docs && .venv/bin/python scripts/screenshots.py site --out shots
    .venv/bin/python scripts/screenshots.py report.html --out shots

Look at them after a change of a style sheet or a template: tests detect overflow and empty elements, not bad layout.
"""

import argparse
from pathlib import Path

from screenshot_tensorboard import Page

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
TALLEST = 4000  # pixels of a page's height


def main() -> None:
    """Open, scroll through, take screenshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+", help="HTML files, or folders that hold them")
    parser.add_argument("--out", type=Path, default=Path("shots"), help="folder for the pictures")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="widths of the window, in pixels")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, help="colour schemes that the system prefers")
    parser.add_argument("--tallest", type=int, default=TALLEST, help="height of the pictures, in pixels from the top")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pages = [page for given in args.pages for page in (sorted(given.rglob("*.html")) if given.is_dir() else [given])]
    top = args.pages[0] if args.pages[0].is_dir() else Path()
    with Page(1280, 900) as browser:
        for page in pages:
            stem = "_".join(
                (page.relative_to(top) if page.is_relative_to(top) else Path(page.name)).with_suffix("").parts
            )
            for width in args.widths:
                for scheme in args.schemes:
                    browser.emulate(width, 900, scheme)
                    browser.open(page.resolve().as_uri(), "document.readyState === 'complete'")
                    picture = browser.whole_page(args.tallest)
                    (args.out / f"{stem}-{width}-{scheme}.png").write_bytes(picture)
        print(f"{len(pages)} pages: {args.out}")


if __name__ == "__main__":
    main()
