"""Trains the autoencoder, or the UNet together with its text encoder. One process a GPU under torchrun, or one alone.

The whole optimizer step, its random draws and the gradient average included, is one CUDA graph: these networks are so
small that launching their kernels one by one would take longer than running them. On a CPU the step runs eagerly.
"""

import argparse
import json
import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from architecture import load_weights, make_scheduler, make_text_encoder, make_unet, make_vae, save_weights
from tokenizer import TEMPLATES
from torch import Tensor, nn
from transformers import CLIPTokenizer

WORDINGS = 64  # tokenised wordings kept for each picture
EMPTY_CAPTIONS = 0.1  # share of pictures trained without their caption, for classifier-free guidance
MAX_SNR = 5.0
KL_WEIGHT = 3e-4
STEPS_PER_CHUNK = 10  # steps between two looks at the clock; the moving average advances by chunks too
WARM_UP = 0.03  # of the training time


class Autoencode(nn.Module):
    """Encode, draw a latent, decode; also returns the latents' mean and log variance."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pixels: (B, 3, 128, 128) in -1..1, noise: (B, 4, 32, 32)."""
        mean, log_var = self.vae.quant_conv(self.vae.encoder(pixels)).float().chunk(2, dim=1)
        log_var = log_var.clamp(-30, 20)
        latents = mean + noise * (0.5 * log_var).exp()
        return self.vae.decoder(self.vae.post_quant_conv(latents)).float(), mean, log_var


class Denoise(nn.Module):
    """Predict the noise in x_t from the caption's tokens."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """x_t: (B, 4, 32, 32), t: (B,), tokens: (B, 32)."""
        return self.unet(x_t, t, self.text_encoder(tokens)[0], return_dict=False)[0].float()


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average_gradients(params: list[Tensor]) -> None:
    """Average the gradients over the processes, as one flat bf16 message."""
    grads = [p.grad for p in params]
    flat = torch.cat([g.reshape(-1) for g in grads]).bfloat16()
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([g.numel() for g in grads])
    torch._foreach_copy_(grads, [part.view(g.shape) for part, g in zip(parts, grads, strict=True)])


def fit(
    loss_fn: Callable[[], Tensor],
    networks: dict[str, nn.Module],
    save: Callable[[dict[str, dict[str, Tensor]]], None],
    *,
    deadline: float,
    learning_rate: float,
    ema_decay: float,
    max_steps: int,
    save_every_s: float,
    use_graph: bool,
) -> None:
    """Minimise `loss_fn()` until the deadline; the networks end as the moving average of their weights."""
    device = next(next(iter(networks.values())).parameters()).device
    on_gpu = device.type == "cuda"
    rank, world = rank_and_world()
    torch.manual_seed(torch.initial_seed() + 1 + rank)  # from here on every process draws its own batches
    params = [p for network in networks.values() for p in network.parameters()]
    lr = torch.zeros((), device=device)
    optimizer = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True, capturable=on_gpu)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            loss = loss_fn()
        loss.backward()
        if world > 1:
            average_gradients(params)
        nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        optimizer.step()
        return loss.detach()

    began = time.time()
    replay = capture(step) if use_graph else step
    ema = [p.detach().clone() for p in params]

    def averaged() -> dict[str, dict[str, Tensor]]:
        found = iter(ema)
        return {key: {name: next(found) for name, _ in net.named_parameters()} for key, net in networks.items()}

    start = saved = time.time()
    clock = torch.zeros((), device=device, dtype=torch.float64)
    steps, total, shown = 0, torch.zeros((), device=device), 0
    if rank == 0:
        print(f"{sum(p.numel() for p in params):,} parameters, prepared in {start - began:.1f} s", flush=True)
    while True:
        clock.fill_((time.time() - start) / max(deadline - start, 1.0))
        if world > 1:
            dist.broadcast(clock, 0)  # every process takes the same decision
        progress = clock.item()
        if progress >= 1 or steps >= max_steps:
            break
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
        lr.fill_(learning_rate * min(1.0, progress / WARM_UP) * cosine)
        for _ in range(STEPS_PER_CHUNK):
            total += replay()
        steps += STEPS_PER_CHUNK
        decay = min(ema_decay, (1 + steps) / (10 + steps))
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1 - decay**STEPS_PER_CHUNK)
        if rank == 0 and (steps - shown >= 500 or steps == 50):
            mean, rate = total.item() / (steps - shown), steps / (time.time() - start)
            print(f"step {steps} loss {mean:.5f} {rate:.1f} steps/s {progress:.0%}", flush=True)
            shown = steps
            total.zero_()
        if rank == 0 and time.time() - saved > save_every_s:
            save(averaged())
            saved = time.time()
    with torch.no_grad():
        torch._foreach_copy_(params, ema)
    if rank == 0:
        print(f"{steps} steps in {time.time() - start:.1f} s", flush=True)
        save(averaged())


def capture(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Warm up one training step, then record it as a CUDA graph; the result replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def load_pixels(data: Path, device: torch.device) -> Tensor:
    """All pictures, (P, 3, 128, 128) u8."""
    images = np.load(data / "images.npz")["images"]
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def to_signed(pixels: Tensor) -> Tensor:
    """u8 pixels to -1..1."""
    return pixels.float() / 127.5 - 1


def wordings(entry: dict[str, list[str]], rng: random.Random) -> list[str]:
    """Half of them the picture's names as they are, half another wording, often within a template."""
    plain = [entry["names"][i % len(entry["names"])] for i in range(WORDINGS // 2)]
    phrases = entry["names"] + entry["alternatives"]
    varied = []
    for i in range(WORDINGS - len(plain)):
        phrase = phrases[i % len(phrases)]
        template = rng.choice(["{}", "{}", "a {}", "a {}", "the {}", *TEMPLATES])
        if phrase[0] in "aeiou":
            template = f" {template}".replace(" a {}", " an {}").strip()
        elif template == "an {}":
            template = "a {}"
        varied.append(template.format(phrase))
    return plain + varied


def load_tokens(data: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens of the pictures' wordings, (P, WORDINGS, 32), and of the empty caption, (32,)."""
    rng = random.Random(0)
    texts = [wordings(entry, rng) for entry in json.loads((data / "captions.json").read_text())]
    tokenizer = CLIPTokenizer.from_pretrained(data / "tokenizer")
    flat = [text for group in texts for text in group] + [""]
    tokens = tokenizer(flat, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
    return tokens[:-1].view(len(texts), WORDINGS, -1), tokens[-1]


def encode_all(vae: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every picture's latents, each (P, 4, 32, 32)."""
    with torch.no_grad():
        posteriors = [vae.encode(to_signed(batch)).latent_dist for batch in pixels.split(64)]
    return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])


@torch.no_grad()
def center_latents(vae: nn.Module, mean: Tensor) -> float:
    """Give every latent channel mean 0 and the same standard deviation, which is returned.

    The shift and the scale go into the 1x1 convolutions around the latents: decoded pictures stay the same.
    """
    shift = mean.mean((0, 2, 3))
    deviation = mean.std().item()
    gain = deviation / mean.std((0, 2, 3))
    into, out_of = vae.quant_conv, vae.post_quant_conv
    channels = len(shift)
    out_of.bias += out_of.weight[:, :, 0, 0] @ shift
    out_of.weight /= gain.view(1, -1, 1, 1)
    into.weight[:channels] *= gain.view(-1, 1, 1, 1)
    into.bias[:channels] = (into.bias[:channels] - shift) * gain
    into.bias[channels:] += 2 * gain.log()
    return deviation


def train_autoencoder(args: argparse.Namespace, device: torch.device) -> None:
    """L1 on pixels and on their differences, and a light KL term; writes vae.safetensors with its scaling factor."""
    vae = make_vae().to(device, memory_format=torch.channels_last)
    if args.resume:
        load_weights(vae, args.resume / "vae.safetensors")
    pixels = load_pixels(args.data, device)
    autoencode = torch.compile(Autoencode(vae)) if device.type == "cuda" else Autoencode(vae)

    def loss_fn() -> Tensor:
        target = to_signed(pixels[torch.randint(len(pixels), (args.batch,), device=device)])
        decoded, mean, log_var = autoencode(target, torch.randn(args.batch, 4, 32, 32, device=device))
        error = decoded - target
        kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).mean()
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.abs().mean() + 0.5 * edges + KL_WEIGHT * kl

    def save(states: dict[str, dict[str, Tensor]]) -> None:
        save_weights("vae", states["vae"], args.out / "vae.safetensors")

    fit(loss_fn, {"vae": vae}, save, **schedule(args))
    if rank_and_world()[0] == 0:
        deviation = center_latents(vae, encode_all(vae, pixels)[0])
        save_weights("vae", vae.state_dict(), args.out / "vae.safetensors", scaling_factor=f"{1 / deviation:.6f}")
        report_autoencoder(vae, pixels, deviation)


@torch.no_grad()
def report_autoencoder(vae: nn.Module, pixels: Tensor, deviation: float) -> None:
    """Print the mean PSNR over the training pictures and the latents' moments."""
    mean, std = encode_all(vae, pixels)
    psnr = []
    for latents, batch in zip(mean.split(64), pixels.split(64), strict=True):
        error = vae.decode(latents).sample.clamp(-1, 1) - to_signed(batch)
        psnr += (-10 * (error / 2).square().mean((1, 2, 3)).log10()).tolist()
    print(f"PSNR {np.mean(psnr):.2f} dB (lowest {min(psnr):.2f})")
    print(f"latents: standard deviation {deviation:.4f}, of which the encoder's noise {std.mean():.4f}")


def train_denoiser(args: argparse.Namespace, device: torch.device) -> None:
    """Noise prediction with min-SNR weights; writes unet.safetensors and text_encoder.safetensors."""
    vae = make_vae().to(device)
    scaling_factor = float(load_weights(vae, args.vae)["scaling_factor"])
    mean, std = (scaling_factor * x for x in encode_all(vae, load_pixels(args.data, device)))
    tokens, empty = load_tokens(args.data, device)
    unet = make_unet().to(device, memory_format=torch.channels_last)
    text_encoder = make_text_encoder().to(device)
    networks = {"unet": unet, "text_encoder": text_encoder}
    if args.resume:
        for name, network in networks.items():
            load_weights(network, args.resume / f"{name}.safetensors")
    alphas_cumprod = make_scheduler().alphas_cumprod.to(device)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = snr.clamp(max=MAX_SNR) / snr
    denoise = Denoise(unet, text_encoder)  # not compiled: that took longer than two minutes here
    size = args.batch

    def loss_fn() -> Tensor:
        picture = torch.randint(len(mean), (size,), device=device)
        wording = torch.randint(WORDINGS, (size,), device=device)
        t = torch.randint(len(alphas_cumprod), (size,), device=device)
        without = torch.rand(size, 1, device=device) < EMPTY_CAPTIONS
        caption = torch.where(without, empty, tokens[picture, wording])
        x_0 = mean[picture] + std[picture] * torch.randn_like(mean[:size])
        eps = torch.randn_like(x_0)
        alpha = alphas_cumprod[t].view(-1, 1, 1, 1)
        eps_pred = denoise(alpha.sqrt() * x_0 + (1 - alpha).sqrt() * eps, t, caption)
        return (weights[t] * (eps_pred - eps).square().mean((1, 2, 3))).mean()

    def save(states: dict[str, dict[str, Tensor]]) -> None:
        for name, state in states.items():
            save_weights(name, state, args.out / f"{name}.safetensors")

    fit(loss_fn, networks, save, **schedule(args))


def schedule(args: argparse.Namespace) -> dict[str, float]:
    """The part of the command line that `fit` takes."""
    return {
        "deadline": args.began + args.seconds,
        "learning_rate": args.learning_rate,
        "ema_decay": args.ema_decay,
        "max_steps": args.max_steps,
        "save_every_s": args.save_every_s,
        "use_graph": torch.cuda.is_available() and not args.eager,
    }


def main() -> None:
    """Parse the command line, join the other processes if any, train."""
    began = time.time()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["autoencoder", "denoiser"])
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "weights")
    parser.add_argument("--vae", type=Path, help="the autoencoder's weights (default: in --out)")
    parser.add_argument("--resume", type=Path, help="folder of weights to start from")
    parser.add_argument("--seconds", type=float, default=400.0, help="wall-clock limit, compilation included")
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--batch", type=int, default=128, help="pictures a step and process")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ema-decay", type=float, default=0.999)
    parser.add_argument("--save-every-s", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="launch every kernel instead of replaying a CUDA graph")
    args = parser.parse_args()
    args.began = began
    args.vae = args.vae or args.out / "vae.safetensors"
    args.out.mkdir(parents=True, exist_ok=True)

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(args.seed)  # the same first weights in every process
    train = train_autoencoder if args.stage == "autoencoder" else train_denoiser
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    train(args, device)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
