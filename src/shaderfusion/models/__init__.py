"""The networks of Stable Diffusion, each recorded as a graph. Paths are diffusers' state-dict paths."""
