"""Readers of files of rows in all formats."""

from graftlm.data.readers.files import READERS, read_file, suffix_of
from graftlm.data.readers.raw import MAX_ROW, Raw

__all__ = ["MAX_ROW", "READERS", "Raw", "read_file", "suffix_of"]
