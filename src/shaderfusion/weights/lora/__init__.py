"""Adapters of the LoRA kind: read from their files, matched with a model's tensors, merged into them."""
