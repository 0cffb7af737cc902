"""Decoding: one engine for `generate`, `chat`, `serve`, the demo and the comparisons."""
