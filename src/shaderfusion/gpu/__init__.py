"""Everything that touches a GPU. The only package that imports wgpu."""
