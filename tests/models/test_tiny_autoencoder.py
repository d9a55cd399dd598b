"""The graph of TAESD's decoder: its weights, its sizes and what it leaves in the padding. Values: end_to_end."""

from shaderfusion.config import TinyVaeConfig
from shaderfusion.kernels.capabilities import DESKTOP_GPU
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.tiny_autoencoder import tiny_decoder_graph


def test_taesd() -> None:
    """Its defaults; the layers without weights count, and only the last convolution after upsampling has a bias."""
    g = tiny_decoder_graph(TinyVaeConfig(), Kernels("f16", DESKTOP_GPU), batch=1, height=64, width=96)
    assert g.num_parameters == 1_222_531
    outside_blocks = {path for path in g.weights if ".conv." not in path}
    layers = [0, 6, 11, 16, 18]
    assert outside_blocks == {f"decoder.layers.{i}.weight" for i in layers} | {
        f"decoder.layers.{i}.bias" for i in (0, 18)
    }
    assert g.inputs["latents"].shape == (1, 64, 96, 4)
    assert (g.outputs["image"].shape, g.outputs["image"].channels) == ((1, 512, 768, 4), 3)


def test_no_layer_reads_a_shifted_tensor() -> None:
    """A shift would leave the padding of a tensor other than zero."""
    config = TinyVaeConfig(latent_channels=3, decoder_block_out_channels=(5, 5), num_decoder_blocks=(1, 1))
    g = tiny_decoder_graph(config, Kernels("f32"), batch=1, height=3, width=2)
    shifted = {b.tensor for call in g.calls if call.params.get("shift") for b in call.bindings if b.access == "write"}
    read = {b.tensor for call in g.calls for b in call.bindings if b.access == "read"}
    assert shifted == {g.outputs["image"]}
    assert not shifted & read
