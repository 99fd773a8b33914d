"""Conversion of the published files to checkpoint directories, and writing of one: one family a file."""
