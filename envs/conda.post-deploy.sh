#!/usr/bin/env bash
# Run by Snakemake when it has made the environment of conda.yaml, which is active then.
set -euo pipefail
cd "$LOWRANK_REPOSITORY"
python="$CONDA_PREFIX/bin/python"
log="$CONDA_PREFIX/install.log"
. envs/packages
