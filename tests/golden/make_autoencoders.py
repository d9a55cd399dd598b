"""Write networks/tiny_vae and autoencoders.npz: a random AutoencoderTiny, and what diffusers decodes with it.

`latents`: (2, C, H, W), some of them far beyond what the first layer lets through, and `image`: (2, 3, f H, f W), in
float32. Needs the `golden` extra.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

from pathlib import Path

import diffusers
import numpy as np
import torch
from make_models import NETWORKS, randomize, size_bytes

OPTIONS = {  # widths and sides that no vector of four fits; the encoder is hardly there
    "latent_channels": 5,
    "decoder_block_out_channels": (10, 10, 10),
    "num_decoder_blocks": (2, 1, 3),
    "encoder_block_out_channels": (1,),
    "num_encoder_blocks": (1,),
    "latent_magnitude": 2,  # not read
    "scaling_factor": 0.8,
}


@torch.no_grad()
def main() -> None:
    vae = diffusers.AutoencoderTiny(**OPTIONS)
    randomize(vae, 300)
    for name, parameter in vae.decoder.named_parameters():
        if name.endswith("conv.4.weight"):
            parameter *= 0.5  # else residual blocks without norms grow from one to the next
    vae.half().save_pretrained(NETWORKS / "tiny_vae")
    generator = torch.Generator().manual_seed(0)
    latents = (
        torch.randn((2, OPTIONS["latent_channels"], 7, 5), generator=generator)
        * torch.tensor([1, 50])[:, None, None, None]
    )
    image = vae.float().decode(latents / vae.config.scaling_factor).sample
    path = Path(__file__).with_name("autoencoders.npz")
    np.savez_compressed(path, latents=latents.numpy(), image=image.numpy())
    print(f"image {image.mean():.2f} +- {image.std():.2f}, {path.stat().st_size} bytes")
    print(f"tiny_vae: {size_bytes(NETWORKS / 'tiny_vae')} bytes")


if __name__ == "__main__":
    main()
