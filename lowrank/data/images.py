"""Batches of prepared images."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from lowrank.errors import IntegrityError
from lowrank.images import ImageFormat


class ImageSplit:
    """One prepared split. The arrays are mapped, not read.

    Attributes:
        images: (rows, channels, H, W) uint8.
        labels: (rows,) int64.

    Raises:
        IntegrityError: the file is missing, cut off, or holds images of another shape.
    """

    def __init__(self, file: Path, image: ImageFormat) -> None:
        try:
            with safe_open(file, framework="pt") as arrays:
                self.images: Tensor = arrays.get_tensor("images")
                self.labels: Tensor = arrays.get_tensor("labels")
        except (OSError, SafetensorError) as error:
            raise IntegrityError(f"{file}: not a prepared split ({error})") from None
        if tuple(self.images.shape) != (len(self.labels), *image.shape):
            expected = f"({len(self.labels)}, {', '.join(map(str, image.shape))})"
            raise IntegrityError(f"{file}: images of shape {tuple(self.images.shape)}; allowed: {expected}")

    def __len__(self) -> int:
        return len(self.labels)


def image_batch(split: ImageSplit, indices: Tensor, image: ImageFormat, size: int | None) -> dict[str, Tensor]:
    """Images as tensors that a transformers model takes.

    pixel_values = (pixel / 255 - mean) / std

    Args:
        split: where the images are.
        indices: (B,) int64, which.
        image: normalisation.
        size: height and width they are resized to, bilinear and antialiased; None keeps them.

    Returns:
        pixel_values (B, channels, H, W) float32 and labels (B,) int64.
    """
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (image.mean, image.std))
    pixels = split.images[indices].float()
    if size is not None and tuple(pixels.shape[-2:]) != (size, size):
        pixels = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return {"pixel_values": pixels.sub_(255 * mean).div_(255 * std), "labels": split.labels[indices]}
