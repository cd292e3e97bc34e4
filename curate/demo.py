"""python -m curate.demo --output results/curate

Runs the whole pipeline on photographs that scikit-image and matplotlib ship, with annotations in
real formats written for them, and trains for a minute on what it packed. It needs no network and no
weights. Two of the photographs show a person and are labelled so. The others stand in for a set
whose every picture is of one person: what is demonstrated is the machinery.

Where `make detector` was run, a folder without labels goes through the detector that it downloads,
which also counts the people on each crop; else a line says that this is left out.
"""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import matplotlib.cbook
import numpy as np
import skimage
from PIL import Image

from curate import run
from curate.config import ConfigError
from curate.cropping import litert
from curate.schema import Facts, Pixels
from osdhuman_jax.cli import CommandError, Parser, check_folder, some_path
from osdhuman_jax.images.listing import real

ROOT = Path(__file__).parent.parent
# The box of the person on each: x0, y0, x1, y1.
PORTRAITS = {"astronaut": (60, 0, 400, 512), "hopper": (20, 30, 500, 600)}
# What is cut out for the folder without labels: head and shoulders, whose photographs are labelled
# elsewhere, and which are no copies of these.
CLOSE_UPS = {"astronaut": (80, 0, 480, 400), "hopper": (60, 0, 480, 420)}
STAND_INS = "coffee rocket retina ihc motorcycle_left motorcycle_right hubble_deep_field".split()
# A gray picture, a transparent one, a small one.
UNFIT = ("camera", "logo", "chelsea")
LICENSES = {1: "CC-BY 2.0", 2: "CC-BY-NC 2.0"}
# Looser than the defaults, which would leave nothing of so few and small photographs.
SETTINGS = (
    "select.top=0.95",
    "split.val=1",
    "box.long_min=200",
    "blur.source_min=30",
    "blur.crop_min=30",
)


def photograph(name: str) -> Pixels:
    """One of the shipped pictures as RGB."""
    if name == "hopper":
        path = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    else:
        path = next((Path(skimage.__file__).parent / "data").glob(f"{name}.*"))
    return np.array(Image.open(path).convert("RGB"))


def write_jpeg(path: Path, rgb: Pixels) -> tuple[int, int]:
    """Write a picture as JPEG with little loss; returns width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path, quality=95, subsampling=0)
    return rgb.shape[1], rgb.shape[0]


def coco_json(images: list[Facts], boxes: dict[int, list[float]]) -> Facts:
    """The content of an instances json; `boxes` are x, y, w, h of an image's person, by its id."""
    return {
        "images": images,
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": box, "iscrowd": 0}
            for i, box in boxes.items()
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "cat"}],
        "licenses": [{"id": i, "name": name} for i, name in LICENSES.items()],
    }


def write_coco(root: Path) -> str:
    """Write the two people, a cat and a photograph that is gone as COCO; returns the --source."""
    images: list[Facts] = []
    boxes: dict[int, list[float]] = {}
    # Two licences, so that --license_allow has something to do.
    for i, name in enumerate([*PORTRAITS, "chelsea"], 1):
        width, height = write_jpeg(root / "train2017" / f"{i:012d}.jpg", photograph(name))
        image = {"id": i, "file_name": f"{i:012d}.jpg", "width": width, "height": height}
        images.append(image | {"license": 1 + i % 2})
        if name in PORTRAITS:
            x0, y0, x1, y1 = PORTRAITS[name]
            boxes[i] = [x0, y0, x1 - x0, y1 - y0]
    # Labels often list photographs that are gone: this one ends as missing_file.
    images.append({"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480})
    boxes[9] = [10, 10, 400, 400]
    path = root / "instances_train2017.json"
    path.write_text(json.dumps(coco_json(images, boxes)))
    return f"coco={path},{root / 'train2017'}"


def write_voc(root: Path) -> str:
    """Write the first person again as VOC; returns the --source.

    The picture is mirrored and smaller: a copy that the split has to find.
    """
    rgb = cv2.resize(photograph("astronaut")[:, ::-1], (480, 480), interpolation=cv2.INTER_AREA)
    write_jpeg(root / "JPEGImages" / "2012_000001.jpg", rgb)
    # VOC counts pixels from 1, and both ends belong to a box.
    x0, y0, x1, y1 = (round(v * 480 / 512) for v in PORTRAITS["astronaut"])
    box = {"xmin": 480 - x1 + 1, "ymin": y0 + 1, "xmax": 480 - x0, "ymax": y1}
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in box.items())
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "Annotations" / "2012_000001.xml").write_text(
        "<annotation><filename>2012_000001.jpg</filename>"
        "<size><width>480</width><height>480</height><depth>3</depth></size>"
        f"<object><name>person</name><bndbox>{sides}</bndbox></object></annotation>"
    )
    return f"voc={root}"


def write_person(root: Path) -> str:
    """Write the other photographs, three unfit ones and a damaged one; returns the --source."""
    for name in STAND_INS:
        write_jpeg(root / f"{name}.jpg", photograph(name))
    for name in UNFIT:
        path = next((Path(skimage.__file__).parent / "data").glob(f"{name}.*"))
        (root / path.name).write_bytes(path.read_bytes())
    # Half of a JPEG file, as a broken download leaves it.
    whole = (root / f"{STAND_INS[0]}.jpg").read_bytes()
    (root / "damaged.jpg").write_bytes(whole[: len(whole) // 2])
    return f"person={root}"


def write_folder(root: Path) -> str:
    """Write two people without labels, and what shows none; returns the --source."""
    for name, (x0, y0, x1, y1) in CLOSE_UPS.items():
        write_jpeg(root / f"{name}.jpg", photograph(name)[y0:y1, x0:x1])
    for name in STAND_INS[:2]:
        write_jpeg(root / f"{name}.jpg", photograph(name)[:, ::-1])
    return f"folder={root}"


def find_detector(folder: Path) -> Path | None:
    """The detector that `make detector` puts into `folder`; None, and a line why, without it."""
    pattern = "mediapipe-objectron-*.tgz"
    path = next(iter(sorted(folder.glob(pattern))), folder / pattern)
    try:
        litert.check(path)
    except ConfigError as error:
        print(f"demo: without the unlabelled source: {error}", flush=True)
        return None
    return path


def detector_flags(root: Path, detector: Path | None) -> list[str]:
    """The source without labels, which is written below `root`, and what finds its people."""
    if detector is None:
        # An earlier run in the same output may have had one.
        return ["--detector=none", "--detector_weights=", "--persons_weights="]
    source = f"--source={write_folder(root)}"
    weights = f"--detector_weights={detector}"
    return [source, "--detector=ssd", weights, f"--persons_weights={detector}"]


def write_sources(root: Path) -> list[str]:
    """Write all sources below `root`; returns the values of --source."""
    return [write_coco(root / "coco"), write_voc(root / "voc"), write_person(root / "person")]


def main(arguments: list[str] | None = None) -> int:
    """Curate, then train.

    Returns the exit status: 0 done, 2 bad output, else that of the command that failed.
    """
    parser = Parser("python -m curate.demo", "Curate shipped photographs, then train.")
    parser.add_argument(
        "--output", type=some_path, required=True, help="folder of all that is made"
    )
    output = real(parser.parse_args(arguments).output)
    try:
        check_folder("output", output)
        sources = [f"--source={source}" for source in write_sources(output / "sources")]
        detector = find_detector(ROOT / "models" / "detector")
        sources += detector_flags(output / "sources" / "folder", detector)
    except (CommandError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    # Two workers, so that processes are part of what is tried.
    settings = [f"--set={setting}" for setting in SETTINGS]
    status = run.main([f"--output={output / 'set'}", "--workers=2", *sources, *settings])
    if status:
        return status
    # The training is the package's own command, in a process of its own: curate imports no JAX.
    data = f"--config.data.sources=('{output / 'set' / 'packed' / 'train'}',)"
    # A run goes on with the pictures that it began with, so that other ones have another folder.
    workdir = output / ("train-detector" if detector else "train")
    command = ["train.py", "--config=configs/debug.py", f"--workdir={workdir}", data]
    try:
        return subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
