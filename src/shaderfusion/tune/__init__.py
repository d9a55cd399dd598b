"""`shaderfusion tune`: the fastest kernels for a model's shapes, found by timing them on the user's device."""
