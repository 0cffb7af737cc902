"""The demo's task: a customer's message in, one JSON record out."""

from __future__ import annotations

from graftlm.demo.requests.generate import CUE, FIELDS, LANGUAGES, generate_rows, prompt_for

__all__ = ["CUE", "FIELDS", "LANGUAGES", "generate_rows", "prompt_for"]
