"""One cluster for all tests of this folder, and one study that ran on it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing
from tests.slurm.sites import Site, ended


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    why = missing()
    if why:
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="slurm-") as home:
        started = Cluster(Path(home))
        try:
            started.start()
            yield started
        finally:
            started.stop()


@pytest.fixture(scope="session")
def done(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The whole study, on the cluster."""
    site = Site(cluster, tmp_path_factory.mktemp("cluster") / "here")
    said = ended(site.start("all"))
    assert "lowrank: scale smoke, studies lr_ratio" in said
    return site


@pytest.fixture
def site(cluster: Cluster, done: Site, tmp_path: Path) -> Iterator[Site]:
    """Prepared data and nothing trained, under a partition that lets nothing start until it is told to."""
    fresh = Site(cluster, tmp_path / "here")
    shutil.copytree(done.folder / "resources", fresh.folder / "resources")
    cluster.run("scontrol", "update", "partition=cpu", "state=down")
    yield fresh
    fresh.kill()
    cluster.run("scontrol", "update", "partition=cpu", "state=up", check=False)
    cluster.run("scancel", "--me", check=False)
