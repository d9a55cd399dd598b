"""Checkpoints in diffusers' folder format: open, check, convert, upload."""
