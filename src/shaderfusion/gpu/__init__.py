"""Everything that touches a GPU. `backend` alone imports an implementation of WebGPU."""
