"""RRDBNet in PyTorch, and its weights in the formats of their publishers: small and random."""

from pathlib import Path

import numpy as np
import torch
from convert import randomise
from torch import nn
from torch.nn import functional

WIDTH, GROWTH, BLOCKS = 8, 4, 2
SIZES = {"num_feat": WIDTH, "num_grow_ch": GROWTH, "num_block": BLOCKS}
State = dict[str, torch.Tensor]


def conv(into: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for i in range(4):
            setattr(self, f"conv{i + 1}", conv(WIDTH + i * GROWTH, GROWTH))
        self.conv5 = conv(WIDTH + 4 * GROWTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat([seen, functional.leaky_relu(layer(seen), 0.2)], 1)
        return x + 0.2 * self.conv5(seen)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = Dense(), Dense(), Dense()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class TorchRRDBNet(nn.Module):
    """(B, 3, H, W) in [0, 1]; scales 4, 2 and 1."""

    def __init__(self, scale: int = 4) -> None:
        super().__init__()
        self.shuffle = 4 // scale
        self.conv_first = conv(3 * self.shuffle**2, WIDTH)
        self.body = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (
            conv(WIDTH, WIDTH) for _ in range(4)
        )
        self.conv_last = conv(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_first(functional.pixel_unshuffle(x, self.shuffle))
        x = x + self.conv_body(self.body(x))
        for layer in (self.conv_up1, self.conv_up2):
            larger = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = functional.leaky_relu(layer(larger), 0.2)
        return self.conv_last(functional.leaky_relu(self.conv_hr(x), 0.2))


def network(scale: int = 4, seed: int = 0) -> TorchRRDBNet:
    """Random, and gray within a few tenths: hardly any of its pixels are clamped."""
    made = TorchRRDBNet(scale)
    randomise(made, seed)
    with torch.no_grad():
        made.conv_last.weight.mul_(0.3)
        made.conv_last.bias.fill_(0.5)
    return made


def halved(state: State) -> State:
    """Weights as float16 holds them; biases as they are."""
    return {k: v.half().float() if k.endswith("weight") else v for k, v in state.items()}


def old_names(state: State) -> State:
    """ESRGAN's first names, by which BSRGAN goes too."""
    names = {"conv_body": "trunk_conv", "conv_up1": "upconv1", "conv_up2": "upconv2"}
    names |= {"conv_hr": "HRconv", "body.": "RRDB_trunk.", ".rdb": ".RDB"}
    for new, old in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    return state


def ncnn_lines() -> list[str]:
    """Layers of a .param as onnx2ncnn writes them: kinds, blobs and settings."""
    lines, blobs = ["Input input.1 0 1 data 0=0"], iter(range(10_000))
    leaky = "9=2 -23310=1,2.000000e-01"

    def add(kind: str, inputs: list[str], settings: str = "") -> str:
        out = f"{kind.lower()}_{next(blobs)}"
        lines.append(f"{kind} {out} {len(inputs)} 1 {' '.join(inputs)} {out} {settings}")
        return out

    def copies(blob: str, count: int) -> list[str]:
        outs = [f"{blob}_split_{i}" for i in range(count)]
        lines.append(f"Split split_{blob} 1 {count} {blob} {' '.join(outs)}")
        return outs

    def convolution(source: str, into: int, out: int, more: str = "") -> str:
        return add("Convolution", [source], f"0={out} 1=3 4=1 5=1 6={9 * into * out} {more}")

    def residual(branch: str, source: str) -> str:
        return add("Eltwise", [branch, source], "0=1 -23301=2,2.000000e-01,1.000000e+00")

    def dense(x: str) -> str:
        first, *uses = copies(x, 6)
        features = [convolution(first, WIDTH, GROWTH, leaky)]
        for i in range(1, 5):
            joined = add("Concat", [uses[i - 1], *features])
            last, more = (WIDTH, "") if i == 4 else (GROWTH, leaky)
            features.append(convolution(joined, WIDTH + i * GROWTH, last, more))
        return residual(features[-1], uses[4])

    first, skip = copies(convolution("data", 3, WIDTH), 2)
    x = first
    for _ in range(BLOCKS):
        branch, around = copies(x, 2)
        x = residual(dense(dense(dense(branch))), around)
    x = add("BinaryOp", [skip, convolution(x, WIDTH, WIDTH)], "0=0")
    for _ in range(2):
        larger = add("Interp", [x], "0=1 1=2.000000e+00 2=2.000000e+00")
        x = convolution(larger, WIDTH, WIDTH, leaky)
    convolution(convolution(x, WIDTH, WIDTH, leaky), WIDTH, 3)
    return lines


def ncnn_files(stem: Path, state: State, half: bool = True) -> Path:
    """NAME.param and NAME.bin; returns the latter."""
    lines = ncnn_lines()
    stem.with_suffix(".param").write_text("\n".join(["7767517", f"{len(lines)} 4711", *lines, ""]))
    data = b""
    for name in (key.removesuffix(".weight") for key in state if key.endswith(".weight")):
        weights = state[f"{name}.weight"].numpy()
        raw = weights.astype(np.float16).tobytes() if half else weights.tobytes()
        data += (0x01306B47 if half else 0).to_bytes(4, "little") + raw + b"\0" * (-len(raw) % 4)
        data += state[f"{name}.bias"].numpy().tobytes()
    path = stem.with_suffix(".bin")
    path.write_bytes(data)
    return path
