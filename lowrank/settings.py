"""`config.yaml`: which studies, at which scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator

from lowrank.strict import Strict, parse


class Settings(Strict):
    """The root configuration."""

    scale: Literal["smoke", "laptop", "paper"] = "laptop"
    """Tiny random models for tests; real data and small models on a CPU; the documents' own models, data and grids."""
    studies: Literal["all"] | tuple[str, ...] = "all"
    """Every study, or some: one name or several."""
    preemptible: bool = False
    """Whether jobs with a GPU try the pre-emptible partition of `site.yaml` first."""

    @field_validator("studies", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "all" else value

    def chosen(self) -> list[str]:
        """Names of the studies that are asked for; whether they exist is for the plan to say."""
        from lowrank.study import studies

        return studies() if self.studies == "all" else list(self.studies)


def read_settings(config: Mapping[str, Any]) -> Settings:
    """The settings of a run of the workflow.

    Raises:
        ConfigError: an unknown key, or a value that is not allowed.
    """
    return parse(Settings, config, "config.yaml")
