"""Folders and files that other tools run."""

from __future__ import annotations

from graftlm.export.merge import merge_to_folder

__all__ = ["merge_to_folder"]
