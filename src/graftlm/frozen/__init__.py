"""Frozen weights: how a weight that is not trained is stored."""
