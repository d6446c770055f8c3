"""Write the images of the course: ``python -m course_utils.figures [--folder images] [NAME ...]``."""

import argparse
import sys
from collections.abc import Sequence

from course_utils.figures import FIGURES, FILMS, render_all


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the images named, or all of them, and print the size of each.

    Args:
        arguments: those of the command line; by default ``sys.argv``.

    Returns:
        0 when all were written, 2 when a name is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m course_utils.figures", description="Write the images of the course."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join([*FIGURES, *FILMS])}")
    parser.add_argument("--folder", default="images", help="where to write images (default: images)")
    chosen = parser.parse_args(arguments)
    try:
        files = render_all(chosen.folder, chosen.names or None)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for file in files:
        print(f"{file.as_posix()}: {file.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
