"""Trains the emoji diffusion transformer of model.py.

    python render.py --out emoji.npz
    python train.py --data emoji.npz --out OUT --minutes 4.5

Needs PyTorch 2.4 or later and numpy. Under OUT it writes, and while training rewrites every half minute,
emoji_dit.safetensors (averaged weights, bf16); at the end also emoji_dit_parity.safetensors (inputs and
outputs of the forward pass in f32, which the Rust implementation is tested against), emoji_dit.png
(samples) and emoji_dit.log. Stopped early, it still leaves the last weights.

Matrices of the blocks are trained with Muon (https://kellerjordan.github.io/posts/muon/), the rest with
AdamW. Classes are drawn with the square root of their size, so that flags and skin tones do not crowd out
the rest.
"""

import argparse
import copy
import os
import time

import numpy as np
import torch
import torch.nn.functional as F

from model import EmojiDit, grid, save_png, save_safetensors

SHOWN = ["face-smiling", "animal-mammal", "food-fruit", "heart", "country-flag", "person-role", "time", "transport-ground"]
NAME = "emoji_dit"


def orthogonalise(g, steps=5):
    """The nearest semi-orthogonal matrices to g [..., rows, columns], by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; each parameter is a stack of matrices."""

    def __init__(self, parameters, lr, momentum=0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(momentum, group["momentum"]))
                p.add_(update, alpha=-group["lr"] * max(1, p.shape[-2] / p.shape[-1]) ** 0.5)


def schedule(step, progress):
    """Factor of the learning rate: a short warm-up, constant, and over the last half down to 1 %."""
    return min(1.0, (step + 1) / 100) * min(1.0, max(0.01, 2 * (1 - progress)))


class Log:
    def __init__(self, path):
        self.file, self.start = open(path, "w", encoding="utf-8"), time.monotonic()

    def __call__(self, text):
        line = f"[{time.monotonic() - self.start:6.1f} s] {text}"
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()


def save(path, model, names):
    metadata = {
        "format": "emoji-dit-1",
        "size": str(model.size),
        "patch": str(model.patch),
        "head_dim": str(model.head_dim),
        "classes": "\n".join(names),
    }
    tensors = {name: tensor.bfloat16() for name, tensor in model.named().items()}
    save_safetensors(path + ".part", tensors, metadata)
    os.replace(path + ".part", path)


def train(model, average, images, classes, options, log, checkpoint):
    device = images.device
    counts = torch.bincount(classes).float()
    weights = counts[classes] ** -0.5
    matrices = model.matrices()
    rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
    muon = Muon(matrices, lr=options.lr_muon)
    adam = torch.optim.AdamW(rest, lr=options.lr, betas=(0.9, 0.99), weight_decay=0.0)
    optimizers = [(muon, options.lr_muon), (adam, options.lr)]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def loss_of(forward):
        index = torch.multinomial(weights, options.batch, replacement=True)
        clean = images[index].float() / 127.5 - 1
        drop = torch.rand(options.batch, device=device) < 0.1
        label = torch.where(drop, model.classes, classes[index])
        t = torch.sigmoid(1.2 * torch.randn(options.batch, device=device))
        noise = torch.randn_like(clean)
        mixed = torch.lerp(clean, noise, t[:, None, None, None])
        return F.mse_loss(forward(mixed, t, label, dtype), noise - clean)

    forward = model
    if device.type == "cuda" and not options.eager:
        try:
            forward = torch.compile(model, dynamic=False)
            loss_of(forward).backward()
            torch.cuda.synchronize()
        except Exception as error:  # Whatever fails in a compiler, training goes on without it.
            log(f"without torch.compile: {type(error).__name__}: {str(error)[:300]}")
            forward = model
    log("first step done")

    start, limit = time.monotonic(), options.minutes * 60
    total, counted, saved, factor = torch.zeros((), device=device), 0, start, 1.0
    good = copy.deepcopy(model.state_dict())
    step = 0
    while (elapsed := time.monotonic() - start) < limit and step < options.steps:
        progress = max(elapsed / limit, step / options.steps)
        for optimizer, lr in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = lr * factor * schedule(step, progress)
        loss = loss_of(forward)
        loss.backward()
        for optimizer, _ in optimizers:
            optimizer.step()
        decay = min(options.average, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        total += loss.detach()
        counted, step = counted + 1, step + 1

        if step % options.every == 0:
            mean = total.item() / counted
            log(f"step {step}, {100 * progress:.0f} %, loss {mean:.4f}")
            if mean == mean and mean < 10:
                good = copy.deepcopy(model.state_dict())
            else:  # Diverged: back to the last good weights at half the rate.
                factor *= 0.5
                log(f"diverged; learning rates now times {factor}")
                model.load_state_dict(good)
                average.load_state_dict(good)
                for optimizer, _ in optimizers:
                    optimizer.state.clear()
            total.zero_()
            counted = 0
        if time.monotonic() - saved > 30:
            checkpoint()
            saved = time.monotonic()
    log(f"{step} steps of {options.batch} images")


@torch.no_grad()
def parity(path, model):
    """Forward passes in f32 on the CPU with the weights as stored."""
    model = copy.deepcopy(model).float().cpu()
    for p in model.parameters():
        p.copy_(p.bfloat16())
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(2, 3, model.size, model.size, generator=generator)
    t, classes, trace = torch.tensor([0.9, 0.25]), torch.tensor([0, model.classes]), []
    velocity = model(images, t, classes, trace=trace)
    tensors = {"images": images, "t": t, "classes": classes, "velocity": velocity}
    # Inputs of blocks 0 and 1 for the first image, a few tokens: where the two differ, this says from where on.
    for i, x in enumerate(trace[:2]):
        tensors[f"blocks.{i}.input"] = x[0, ::64].contiguous()
    save_safetensors(path, tensors, {"tokens": "every 64th"})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the .npz of render.py")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--minutes", type=float, default=4.5, help="training time after compilation")
    parser.add_argument("--steps", type=int, default=1_000_000, help="stop after this many steps")
    parser.add_argument("--init", help="weights to start from, as written by an earlier run")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3, help="AdamW's rate")
    parser.add_argument("--lr-muon", type=float, default=0.01)
    parser.add_argument("--average", type=float, default=0.999, help="decay of the weights' moving average")
    parser.add_argument("--every", type=int, default=100, help="steps from line to line of the log")
    parser.add_argument("--eager", action="store_true", help="do not use torch.compile")
    parser.add_argument("--sample-steps", type=int, default=32)
    options = parser.parse_args()

    os.makedirs(options.out, exist_ok=True)
    path = os.path.join(options.out, NAME)
    log = Log(path + ".log")
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")

    data = np.load(options.data)
    names = [str(name) for name in data["class_names"]]
    images = torch.from_numpy(data["images"]).to(device).permute(0, 3, 1, 2).contiguous()
    classes = torch.from_numpy(data["classes"]).to(device)
    model = EmojiDit(len(names), patch=options.patch, hidden=options.hidden, layers=options.layers).to(device)
    if options.init:
        model.load(options.init)
    average = copy.deepcopy(model).requires_grad_(False)
    count = sum(p.numel() for p in model.parameters())
    log(f"PyTorch {torch.__version__} on {device}; {len(images)} images, {len(names)} classes, {count} parameters")

    train(model, average, images, classes, options, log, lambda: save(path + ".safetensors", average, names))
    save(path + ".safetensors", average, names)
    log("weights saved")
    parity(path + "_parity.safetensors", average)
    log("parity saved")

    shown = torch.tensor([names.index(name) for name in SHOWN], device=device).repeat_interleave(8)
    noise = torch.randn(64, 3, model.size, model.size, device=device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pictures = [average.sample(noise, shown, options.sample_steps, guidance, dtype) for guidance in (1.0, 2.0)]
    save_png(path + ".png", np.concatenate([grid(picture, 8) for picture in pictures], axis=1))
    log("samples saved: guidance 1 on the left, 2 on the right")


if __name__ == "__main__":
    main()
