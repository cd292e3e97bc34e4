"""SwinIR in PyTorch, every published layout of it, with the published names: for comparisons.

Written from the description of the published files. `state_dict()` has their names, and the buffers
that they have too. Pictures are (B, 3, H, W) in [0, 1].
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

MEAN = torch.tensor([0.4488, 0.4371, 0.4040])[None, :, None, None]


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


class Window(nn.Module):
    def __init__(self, dim: int, heads: int, side: int):
        super().__init__()
        self.heads, self.side = heads, side
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij")).flatten(1)
        delta = places[:, :, None] - places[:, None] + side - 1
        self.register_buffer("relative_position_index", delta[0] * (2 * side - 1) + delta[1])
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, mask):
        n, t, c = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask.repeat(n // len(mask), 1, 1)[:, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(n, -1, -1, -1))
        return self.proj(out.transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, hidden: int, side: int, shift: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Window(dim, heads, window)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})
        # Files have it for the size of the training's patches, `side`.
        self.register_buffer("attn_mask", self.mask(side, side) if shift else None)

    def cut(self, x):
        b, h, w, c = x.shape
        s = self.window
        return x.view(b, h // s, s, w // s, s, c).transpose(2, 3).reshape(-1, s * s, c)

    def mask(self, height: int, width: int) -> torch.Tensor:
        """-100 between pixels of a window that come from different parts of the picture."""
        region, number = torch.zeros(1, height, width, 1), 0
        ends = slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None)
        for rows in ends:
            for columns in ends:
                region[:, rows, columns] = number
                number += 1
        where = self.cut(region)[..., 0]
        return torch.where(where[:, :, None] == where[:, None], 0.0, -100.0)

    def forward(self, x):
        b, h, w, c = x.shape
        s = self.window
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = self.attn(self.cut(y), self.mask(h, w) if self.shift else None)
        y = y.view(b, h // s, w // s, s, s, c).transpose(2, 3).reshape(x.shape)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


def closing(dim: int, kind: str) -> nn.Module:
    """What ends a residual."""
    if kind == "1conv":
        return conv(dim, dim)
    few = dim // 4
    middle = nn.LeakyReLU(0.2), nn.Conv2d(few, few, 1), nn.LeakyReLU(0.2)
    return nn.Sequential(conv(dim, few), *middle, conv(few, dim))


class RSTB(nn.Module):
    def __init__(
        self, dim: int, depth: int, heads: int, window: int, hidden: int, side: int, kind="1conv"
    ):
        super().__init__()
        shifts = [i % 2 * (window // 2) for i in range(depth)]
        blocks = [Block(dim, heads, window, hidden, side, shift) for shift in shifts]
        self.residual_group = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
        self.conv = closing(dim, kind)

    def forward(self, x):
        y = x
        for block in self.residual_group["blocks"]:
            y = block(y)
        return x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SwinIR(nn.Module):
    """Of the fields of a `SwinIRConfig`; `slopes` are LeakyReLU's, before and after enlarging."""

    def __init__(self, plan: dict[str, Any], slopes: tuple[float, float] = (0.01, 0.2)):
        super().__init__()
        self.plan, self.slope = plan, slopes[1]
        dim, width, up, fold = (plan[k] for k in ("embed_dim", "num_feat", "upscale", "unshuffle"))
        first = conv(3 * fold**2, dim)
        self.conv_first = first if fold == 1 else nn.Sequential(nn.PixelUnshuffle(fold), first)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(dim)})
        window, kind = plan["window_size"], plan["resi_connection"]
        sizes = window, int(dim * plan["mlp_ratio"]), 4 * window, kind
        groups = zip(plan["depths"], plan["num_heads"], strict=True)
        self.layers = nn.ModuleList(RSTB(dim, *group, *sizes) for group in groups)
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = closing(dim, kind)
        upsampler = plan["upsampler"]
        if upsampler in ("nearest+conv", "pixelshuffle"):
            before = conv(dim, width), nn.LeakyReLU(slopes[0])
            self.conv_before_upsample = nn.Sequential(*before)
        if upsampler == "nearest+conv":
            for k in range(int(math.log2(up))):
                setattr(self, f"conv_up{k + 1}", conv(width, width))
            self.conv_hr = conv(width, width)
        if upsampler == "pixelshuffle":
            steps = [3] if up == 3 else [2] * int(math.log2(up))
            pairs = ((conv(width, s * s * width), nn.PixelShuffle(s)) for s in steps)
            self.upsample = nn.Sequential(*(layer for pair in pairs for layer in pair))
        if upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(conv(dim, 3 * up**2), nn.PixelShuffle(up))
        else:
            self.conv_last = conv(width or dim, 3)

    def forward(self, x):
        height, width = x.shape[-2:]
        own, scale = (self.plan["window_size"] * self.plan["unshuffle"], self.plan["img_range"])
        x = F.pad(x, (0, -width % own, 0, -height % own), mode="reflect")
        x = (x - MEAN) * scale
        first = self.conv_first(x)
        y = self.patch_embed["norm"](first.permute(0, 2, 3, 1))
        for layer in self.layers:
            y = layer(y)
        y = first + self.conv_after_body(self.norm(y).permute(0, 3, 1, 2))
        y = self.enlarged(y) if self.plan["upsampler"] else x + self.conv_last(y)
        factor = self.plan["upscale"] // self.plan["unshuffle"]
        return (y / scale + MEAN)[..., : factor * height, : factor * width]

    def enlarged(self, y):
        kind = self.plan["upsampler"]
        if kind == "pixelshuffledirect":
            return self.upsample(y)
        y = self.conv_before_upsample(y)
        if kind == "pixelshuffle":
            return self.conv_last(self.upsample(y))
        for k in range(int(math.log2(self.plan["upscale"]))):
            larger = F.interpolate(y, scale_factor=2)
            y = F.leaky_relu(getattr(self, f"conv_up{k + 1}")(larger), self.slope)
        return self.conv_last(F.leaky_relu(self.conv_hr(y), self.slope))
