"""Layer shapes of Stable Diffusion 1.4 at 512x512 with guidance (batch 2; the decoder's batch is 1), named once."""

__all__ = ["ATTENTION", "CONV2D", "GROUP_NORM", "MATMUL"]

# name: (B, H, W, C_in, C_out) of a 3x3 convolution of stride 1
CONV2D: dict[str, tuple[int, int, int, int, int]] = {
    "unet 320@64": (2, 64, 64, 320, 320),
    "unet 640@32": (2, 32, 32, 640, 640),
    "unet 1280@16": (2, 16, 16, 1280, 1280),
    "unet 1280@8": (2, 8, 8, 1280, 1280),
    "vae 512@128": (1, 128, 128, 512, 512),
    "vae 256@256": (1, 256, 256, 256, 256),
    "vae 128@512": (1, 512, 512, 128, 128),
}

# name: (M, N, K)
MATMUL: dict[str, tuple[int, int, int]] = {
    "square 4096": (4096, 4096, 4096),
    "unet proj 320@64": (8192, 320, 320),
    "unet ff.0 320@64": (8192, 2560, 320),
    "unet ff.2 320@64": (8192, 320, 1280),
    "unet proj 640@32": (2048, 640, 640),
    "unet ff.0 640@32": (2048, 5120, 640),
    "unet proj 1280@16": (512, 1280, 1280),
    "unet ff.0 1280@16": (512, 10240, 1280),
    "unet to_k 1280": (154, 1280, 768),
    "text fc1": (77, 3072, 768),
}

# name: (B, N, M, heads, D)
ATTENTION: dict[str, tuple[int, int, int, int, int]] = {
    "self 4096 d40": (2, 4096, 4096, 8, 40),
    "self 1024 d80": (2, 1024, 1024, 8, 80),
    "self 256 d160": (2, 256, 256, 8, 160),
    "self 64 d160": (2, 64, 64, 8, 160),
    "cross 4096 d40": (2, 4096, 77, 8, 40),
    "cross 1024 d80": (2, 1024, 77, 8, 80),
    "cross 256 d160": (2, 256, 77, 8, 160),
    "cross 64 d160": (2, 64, 77, 8, 160),
}

# name: (B, H, W, C) of a group norm with 32 groups
GROUP_NORM: dict[str, tuple[int, int, int, int]] = {
    "unet 320@64": (2, 64, 64, 320),
    "unet 960@64": (2, 64, 64, 960),
    "unet 640@32": (2, 32, 32, 640),
    "unet 1280@16": (2, 16, 16, 1280),
    "unet 2560@8": (2, 8, 8, 2560),
    "vae 512@128": (1, 128, 128, 512),
    "vae 256@256": (1, 256, 256, 256),
    "vae 128@512": (1, 512, 512, 128),
}
