"""Checkpoint directories: reading, writing, and conversion of the published files."""
