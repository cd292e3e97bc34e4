"""Folders and packed files of random pictures, and what a loader makes of them."""

from pathlib import Path

import cv2
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from osdhuman_jax.config import DataConfig
from osdhuman_jax.data.loader import Loader
from osdhuman_jax.data.records import encode_record

COUNT = 10


def picture(seed: int, height: int = 40, width: int = 52) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def pack(path: Path, payloads: list[bytes]) -> Path:
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for i, payload in enumerate(payloads):
        writer.write(encode_record({"crop_id": f"{i}", "w": 52, "h": 40, "codec": "png"}, payload))
    writer.close()
    return path


def config_of(*sources: Path, **changes) -> DataConfig:
    values = {"crop": 32, "degrade": False, "workers": 0, "seed": 5, **changes}
    return DataConfig(sources=tuple(map(str, sources)), **values)


def take(loader: Loader, count: int) -> list[dict[str, np.ndarray]]:
    return [next(loader) for _ in range(count)]


def indices(batches: list[dict[str, np.ndarray]]) -> list[int]:
    return np.concatenate([batch["index"] for batch in batches]).tolist()


def assert_equal(ours: list[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
