"""Runs `snakemake --lint` and fails on any advice but the one that does not fit this project.

Snakemake wants an environment for each rule; here one pinned `.venv` serves all. It can leave no
advice out, and `--lint json` prints text all the same, so the text is read: a line `Lints for ...:`
names a place, a line `    * ...` begins one piece of advice.
"""

import re
import subprocess
import sys

UNFIT = "Specify a conda environment or container for each rule."


def complaints(text: str) -> list[str]:
    """The pieces of advice that fit, each under the place it is for."""
    found = []
    for block in re.split(r"^(?=Lints for )", text, flags=re.MULTILINE)[1:]:
        place, *advice = re.split(r"^    \* ", block, flags=re.MULTILINE)
        found += [f"{place.strip()} {piece.strip()}" for piece in advice if not piece.startswith(UNFIT)]
    return found


def main() -> int:
    """The exit code: 0 when nothing is left to say."""
    done = subprocess.run(["snakemake", "--lint"], capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    left = complaints(text)
    if done.returncode and "Lints for " not in text:
        left = [text]  # the workflow could not be read at all
    print(*left, sep="\n\n", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
