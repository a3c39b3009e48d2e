"""What image data is made of, and which models it fits. Readable without numpy or torch, for the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from lowrank.errors import ConfigError
from lowrank.strict import Float, PositiveFloat, PositiveInt, Strict


class ImageFormat(Strict):
    """Size and normalisation of a dataset's images: x = (pixel / 255 - mean) / std."""

    channels: Literal[1, 3]
    """Of the arrays that a model sees; a grey image fills all three where 3 is said."""
    height: PositiveInt
    width: PositiveInt
    mean: tuple[Float, ...] = Field((0.5,), min_length=1)
    """One number, or one for each channel."""
    std: tuple[PositiveFloat, ...] = Field((0.5,), min_length=1)

    @model_validator(mode="after")
    def _one_or_each(self) -> ImageFormat:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} has {len(values)} numbers; allowed: 1 or {self.channels}, the channels")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width


def check_fit(
    image: ImageFormat | None, data: str, size: int | None, model: str, config: Mapping[str, Any], task: str
) -> None:
    """Refuses images for a model that reads text or other images, and text for a model that reads images.

    Args:
        image: the data card's format; None for text.
        data: name of the data card.
        size: what images are resized to; None keeps them.
        model: name of the model card.
        config: its facts.
        task: of the run.

    Raises:
        ConfigError: names both cards, what does not fit and what is allowed.
    """
    reads_images = "image_size" in config
    if image is None:
        if reads_images or size is not None:
            what = f"model card {model!r} reads images" if reads_images else f"image_size is {size}"
            raise ConfigError(f"{what}, but data card {data!r} holds text; allowed: a data card of task 'image'")
        return
    if not reads_images or task != "classification":
        what = f"task {task!r}" if reads_images else f"model card {model!r}, which reads text,"
        raise ConfigError(
            f"data card {data!r} holds images, which {what} cannot use; "
            "allowed: task 'classification' and a model card whose config has image_size"
        )
    expected = (config.get("num_channels", 3), config["image_size"], config["image_size"])
    found = image.shape if size is None else (image.channels, size, size)
    if found != expected:
        raise ConfigError(
            f"data card {data!r} gives images of (channels, height, width) {found}, model card {model!r} takes "
            f"{expected}; allowed: image_size: {expected[1]} in the data settings resizes, and a card's "
            "channels: 3 repeats grey images"
        )
