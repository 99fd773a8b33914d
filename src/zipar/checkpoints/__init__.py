"""Checkpoint directories: finding and reading them."""
