"""Writes `config/README.md`, which the Snakemake workflow catalog shows, from the records that read the settings.

`python docs/configuration.py` writes it; a test compares the file with what would be written.
"""

from __future__ import annotations

from pathlib import Path

from lowrank.fields import fields, markdown
from lowrank.files import write_text
from lowrank.settings import Settings
from lowrank.site import Site

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "config" / "README.md"


def page() -> str:
    """The page."""
    config = (ROOT / "config.yaml").read_text(encoding="utf-8").strip()
    blocks = [
        "# Configuration",
        "Written by `python docs/configuration.py` from `lowrank/settings.py` and `lowrank/site.py`; edit those, not "
        "this page. An unknown key or a value that is not allowed is refused before anything runs, with its place and "
        "the nearest known name.",
        "## config.yaml",
        "What is run. The file lies in the root of the repository; a value is overridden for one call with "
        "`--config`, such as `snakemake --cores all --config scale=smoke -- all`.",
        markdown(fields(Settings, "lowrank"), "key"),
        f"As it is committed:\n\n```yaml\n{config}\n```",
        "## site.yaml",
        "What a cluster is called and has; only `--profile slurm` needs it. Copy "
        "[the example](../workflow/profiles/site.example.yaml) to the root; git ignores the copy. Every key may be "
        "left out, and SLURM's own default is taken then. How to run there: [clusters](../docs/cluster.md).",
        markdown(fields(Site, "lowrank"), "key"),
        "## The studies",
        "What is trained, and what is shown of it, stands in `workflow/studies/<study>.yaml`: arms, grids for each "
        "scale, tables, figures and claims. How to write one: [add a study](../docs/add-a-study.md).",
    ]
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    write_text(PAGE, page())
