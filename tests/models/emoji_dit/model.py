"""The diffusion transformer of train.py: PyTorch definition, sampler and file format."""

import json
import math
import struct
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-6
ROPE_BASE = 100.0
TIME_FREQUENCIES = 128


def rms_norm(x):
    return F.rms_norm(x, (x.shape[-1],), eps=EPS)


class EmojiDit(nn.Module):
    """Predicts the velocity `noise - image` of a rectified flow, `x_t = (1 - t) image + t noise`.

    One token a patch, no class token; 2-D rotary positions, RMS-normalised q and k, one projection of time
    and class to modulations that all blocks share, each block adding a table of its own (adaLN-single).
    Weights of equal shape are stacked over the blocks, for the optimiser's sake.
    """

    def __init__(self, classes, size=64, patch=2, hidden=256, layers=8, head_dim=64):
        super().__init__()
        self.size, self.patch, self.hidden, self.layers, self.head_dim = size, patch, hidden, layers, head_dim
        self.classes, self.heads = classes, hidden // head_dim
        pixels, std = 3 * patch * patch, hidden**-0.5

        def normal(*shape, std=std):
            return nn.Parameter(torch.randn(*shape) * std)

        def zeros(*shape):
            return nn.Parameter(torch.zeros(*shape))

        self.patch_weight, self.patch_bias = normal(hidden, pixels, std=pixels**-0.5), zeros(hidden)
        self.time_in, self.time_in_bias = normal(hidden, 2 * TIME_FREQUENCIES, std=0.02), zeros(hidden)
        self.time_out, self.time_out_bias = normal(hidden, hidden, std=0.02), zeros(hidden)
        self.class_embed = normal(classes + 1, hidden, std=0.02)  # The last row: no class.
        self.modulation, self.modulation_bias = zeros(6 * hidden, hidden), zeros(6 * hidden)
        self.tables = zeros(layers, 6, hidden)
        self.qkvo = normal(layers, 4, hidden, hidden)
        self.q_norm, self.k_norm = (nn.Parameter(torch.ones(layers, head_dim)) for _ in range(2))
        self.up = normal(layers, 4 * hidden, hidden)
        self.down = normal(layers, hidden, 4 * hidden, std=(4 * hidden) ** -0.5)
        self.final_table = zeros(2, hidden)
        self.final, self.final_bias = zeros(pixels, hidden), zeros(pixels)

        # Angle of pair i of a half: position * base^(-i/16). The first half turns with the row, the second
        # with the column.
        side, pairs = size // patch, head_dim // 4
        angles = torch.arange(side)[:, None] * ROPE_BASE ** (-torch.arange(pairs) / pairs)
        rows = angles[:, None].expand(side, side, pairs).reshape(-1, pairs)
        columns = angles[None].expand(side, side, pairs).reshape(-1, pairs)
        angles = torch.stack([rows, columns], dim=1)  # [tokens, 2, pairs]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def matrices(self):
        """The weights that Muon trains, as stacks of matrices."""
        return [self.qkvo, self.up, self.down]

    def rotate(self, x):
        batch, heads, tokens, dim = x.shape
        a, b = x.view(batch, heads, tokens, 2, 2, dim // 4).unbind(-2)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-2).reshape(x.shape)

    def patchify(self, x):
        side, patch = self.size // self.patch, self.patch
        x = x.view(-1, 3, side, patch, side, patch)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, side * side, 3 * patch * patch)

    def unpatchify(self, x):
        side, patch = self.size // self.patch, self.patch
        x = x.view(-1, side, side, 3, patch, patch)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, self.size, self.size)

    def forward(self, images, t, classes, dtype=torch.float32, trace=None):
        """Velocity [B, 3, S, S] in f32 of images [B, 3, S, S] at times t [B], 0 to 1; blocks compute in dtype."""
        frequencies = 10000.0 ** (-torch.arange(TIME_FREQUENCIES, device=t.device) / TIME_FREQUENCIES)
        angles = 1000.0 * t.float()[:, None] * frequencies
        time = F.silu(F.linear(torch.cat([angles.cos(), angles.sin()], 1), self.time_in, self.time_in_bias))
        c = F.linear(time, self.time_out, self.time_out_bias) + F.embedding(classes, self.class_embed)
        shared = F.linear(F.silu(c), self.modulation, self.modulation_bias).view(-1, 6, self.hidden)

        x = F.linear(self.patchify(images), self.patch_weight, self.patch_bias).to(dtype)
        batch, tokens, hidden = x.shape
        for i in range(self.layers):
            if trace is not None:
                trace.append(x)
            shift1, scale1, gate1, shift2, scale2, gate2 = (
                (shared + self.tables[i]).to(dtype)[:, :, None].unbind(1)
            )
            h = rms_norm(x) * (1 + scale1) + shift1
            qkv = F.linear(h, self.qkvo[i, :3].reshape(3 * hidden, hidden).to(dtype))
            q, k, v = qkv.view(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
            q = self.rotate(rms_norm(q) * self.q_norm[i].to(dtype))
            k = self.rotate(rms_norm(k) * self.k_norm[i].to(dtype))
            h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            x = x + gate1 * F.linear(h, self.qkvo[i, 3].to(dtype))
            h = rms_norm(x) * (1 + scale2) + shift2
            h = F.gelu(F.linear(h, self.up[i].to(dtype)), approximate="tanh")
            x = x + gate2 * F.linear(h, self.down[i].to(dtype))
        shift, scale = (c[:, None] + self.final_table).to(dtype)[:, :, None].unbind(1)
        x = rms_norm(x) * (1 + scale) + shift
        return self.unpatchify(F.linear(x.float(), self.final, self.final_bias))

    @torch.no_grad()
    def sample(self, noise, classes, steps, guidance=1.0, dtype=torch.float32):
        """Euler steps from t = 1 to t = 0; with guidance other than 1, away from the unconditional velocity."""
        x = noise
        none = torch.full_like(classes, self.classes)
        for step in range(steps):
            t = torch.full(classes.shape, 1 - step / steps, device=x.device)
            velocity = self(x, t, classes, dtype)
            if guidance != 1.0:
                without = self(x, t, none, dtype)
                velocity = without + guidance * (velocity - without)
            x = x - velocity / steps
        return x

    def named(self):
        """Names and tensors of the file: one tensor a matrix, `blocks.N.…` for the blocks."""
        tensors = {
            "patch.weight": self.patch_weight, "patch.bias": self.patch_bias,
            "time_in.weight": self.time_in, "time_in.bias": self.time_in_bias,
            "time_out.weight": self.time_out, "time_out.bias": self.time_out_bias,
            "class_embed.weight": self.class_embed,
            "modulation.weight": self.modulation, "modulation.bias": self.modulation_bias,
            "final.table": self.final_table, "final.weight": self.final, "final.bias": self.final_bias,
        }  # fmt: skip
        for i in range(self.layers):
            for j, name in enumerate(("q_proj", "k_proj", "v_proj", "o_proj")):
                tensors[f"blocks.{i}.{name}.weight"] = self.qkvo[i, j]
            tensors[f"blocks.{i}.q_norm.weight"] = self.q_norm[i]
            tensors[f"blocks.{i}.k_norm.weight"] = self.k_norm[i]
            tensors[f"blocks.{i}.up_proj.weight"] = self.up[i]
            tensors[f"blocks.{i}.down_proj.weight"] = self.down[i]
            tensors[f"blocks.{i}.table"] = self.tables[i]
        return tensors

    @torch.no_grad()
    def load(self, path):
        """Takes the weights of a file that `named` gave."""
        stored = load_safetensors(path)
        for name, tensor in self.named().items():
            tensor.copy_(stored[name])


def save_safetensors(path, tensors, metadata):
    """Writes the safetensors format (https://github.com/huggingface/safetensors#format)."""
    header, blobs, offset = {"__metadata__": metadata}, [], 0
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        blob = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(blobs)


def load_safetensors(path):
    """Tensors of a file that `save_safetensors` wrote."""
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64}
    with open(path, "rb") as file:
        data = file.read()
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        blob = bytearray(data[8 + length + start : 8 + length + end])
        tensors[name] = torch.frombuffer(blob, dtype=dtypes[entry["dtype"]]).view(entry["shape"])
    return tensors


def save_png(path, pixels):
    """Writes uint8 [height, width, 3] as PNG."""

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.write(chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)))
        file.write(chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)))
        file.write(chunk(b"IEND", b""))


def grid(images, columns):
    """Images [N, 3, S, S] in -1 to 1 as one picture, uint8 [rows S, columns S, 3]."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    size = pixels.shape[-1]
    pixels = pixels.view(-1, columns, 3, size, size).permute(0, 3, 1, 4, 2)
    return pixels.reshape(-1, columns * size, 3).contiguous().numpy()
