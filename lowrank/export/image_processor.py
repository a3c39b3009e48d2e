"""How images were prepared, beside an exported model."""

from __future__ import annotations

from pathlib import Path

from lowrank.files import write_json
from lowrank.images import ImageFormat

BILINEAR = 2
"""Pillow's number for it."""


def write_image_processor(folder: Path, image: ImageFormat | None, size: int | None) -> None:
    """Writes `preprocessor_config.json`, from which transformers' AutoImageProcessor does what training did.

    Args:
        folder: of the export.
        image: of the data that was trained on; None where that was text, and nothing is written.
        size: what its images were resized to; None kept them.
    """
    if image is None:
        return
    mean, std = (list(values) * (image.channels // len(values)) for values in (image.mean, image.std))
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size or image.height, "width": size or image.width},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    write_json(folder / "preprocessor_config.json", settings)
