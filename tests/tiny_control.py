"""The tiny DiffBody as a training begins with it, and a batch with people."""

import json
from pathlib import Path

import cv2
import numpy as np
import tiny
from convert import filled
from flax import nnx

from osdhuman_jax.config import Config, ModelConfig
from osdhuman_jax.methods.build import build_restorer
from osdhuman_jax.methods.diffbody import DiffBody
from osdhuman_jax.networks.configs import ControlNetConfig, PartParserConfig, RRDBNetConfig
from osdhuman_jax.networks.controlnet import ControlNet
from osdhuman_jax.networks.rrdbnet import RRDBNet
from osdhuman_jax.training import train_step

CLEANER = RRDBNetConfig(4, 4, 1, 1)
# A person who stands, in shares of the picture: x and y of OpenPose's joints.
JOINTS = (
    *((0.5, 0.12), (0.5, 0.25), (0.4, 0.25), (0.35, 0.4), (0.3, 0.5), (0.6, 0.25), (0.65, 0.4)),
    *((0.7, 0.5), (0.45, 0.5), (0.45, 0.7), (0.45, 0.85), (0.55, 0.5), (0.55, 0.7), (0.55, 0.85)),
    *((0.47, 0.1), (0.53, 0.1), (0.45, 0.11), (0.55, 0.11)),
)


def cleaner(rngs: nnx.Rngs) -> RRDBNet:
    return RRDBNet(CLEANER, rngs=rngs)


def config(*, pose: bool = True, attention: bool = True) -> Config:
    made = tiny.config("control")
    made.loss.chroma = 0.0
    made.control.pose, made.control.attention = pose, attention
    made.data.poses, made.run.init, made.run.best = ("poses",), "prior", "val_loss"
    return made


def parts_config() -> Config:
    made = config()
    made.run.kind, made.parser = "parts", PartParserConfig(5, (4, 8), 2)
    return made


def model(sizes: ModelConfig = tiny.MODEL, *, pose: bool = True, attention: bool = True):
    """Every weight random but for the ControlNet's, which begins with the U-Net's."""
    base = filled(lambda rngs: build_restorer(sizes, rngs=rngs))
    made = ControlNetConfig(sizes.unet, pose=pose, attention=attention)
    control = filled(lambda rngs: ControlNet(made, rngs=rngs))
    control.copy_from(base.unet)
    return DiffBody(base.vae, base.unet, control, filled(cleaner), base.prompter)


def start(made: Config) -> tuple:
    conditions = {"pose": made.control.pose, "attention": made.control.attention}
    network = model(made.model, **conditions)
    trainer = train_step.Trainer(made, made.model, network)
    return trainer, *trainer.start(network)


def people(size: tuple[int, int]) -> np.ndarray:
    """That person in a picture of `size`, (18, 3)."""
    height, width = size
    scale = np.array([width, height])
    return np.column_stack([np.array(JOINTS) * scale, np.full(18, 0.9)]).astype(np.float32)


def batch(count: int = 2, side: int = 16) -> dict[str, np.ndarray]:
    """Pictures with that person in the middle, and with three more who are nobody."""
    joints = np.zeros((count, 4, 18, 3), np.float32)
    joints[:, 0] = people((side, side))
    attention = np.zeros((count, side, side, 1), np.float32)
    attention[:, 1:-1, side // 4 : -side // 4] = 1.0
    return {**tiny.pictures(count, side), "people": joints, "attention": attention}


def write_poses(folder: Path, name: str, size: tuple[int, int]) -> None:
    """What `osdhuman poses` leaves of a picture."""
    folder.mkdir()
    line = {"file": f"{name}.png", "people": [people(size).tolist()]}
    (folder / "poses.jsonl").write_text(json.dumps(line) + "\n")
    gray = np.zeros(size, np.uint8)
    gray[:, size[1] // 4 : -size[1] // 4] = 255
    cv2.imwrite(str(folder / f"{name}.png"), gray)
