"""Checkpoints, in diffusers' folder format or in one file: open, check, convert, upload."""
