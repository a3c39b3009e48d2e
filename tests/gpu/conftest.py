"""The tests of this folder run where there is a CUDA device, and are skipped elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.gpu.lab import DEVICE

REQUIRED = os.environ.get("LOWRANK_GPU_REQUIRED") == "1"
"""Set by `make test-gpu`, for which a missing GPU is a failure."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what lies here; all items of the session come through this hook."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def _resources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fetched cards and prepared data, once for all tests."""
    return tmp_path_factory.mktemp("resources")


@pytest.fixture(autouse=True)
def _here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the test's own; a test that needs a device finds one."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        (pytest.fail if REQUIRED else pytest.skip)("needs a CUDA GPU")
    if DEVICE.type == "cpu" and request.node.get_closest_marker("cuda_alone"):
        pytest.skip("needs a CUDA GPU, which LOWRANK_TEST_DEVICE=cpu does without")
    monkeypatch.chdir(tmp_path)
    Path("resources").symlink_to(request.getfixturevalue("_resources"))
