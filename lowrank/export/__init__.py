"""Trained runs as others load them: PEFT folders, and plain models with everything merged in."""

from lowrank.export.export import export_run

__all__ = ["export_run"]
