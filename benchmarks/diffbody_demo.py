"""Train DiffBody in small for minutes, by the project's own commands, and use what comes of it.

    python -m benchmarks.diffbody_demo --output results/diffbody      # make diffbody-demo

All five stages of docs/diffbody.md ("In small") run one after the other on photographs that
scikit-image and matplotlib ship, two of which show a person: autoencoder, prior, cleaner, parser of
parts, ControlNet. Then both people are degraded and restored by the cleaner, by DiffBody, and by
DiffBody led by parts of the body, and OUTPUT/sheet.png shows them side by side.

It shows that the chain holds, and no more: so short a training does not restore. The configs' own
numbers of steps are six to 24 times as many, on thousands of photographs. A stage whose model is
there is not trained again, one that was stopped goes on, so that the same command finishes what is
left. Removing OUTPUT begins anew. Joints and outlines of the two people, found by BlazePose, are
constants here, so that nobody needs its files.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import skimage.data

from benchmarks.quality import run, save, shipped
from osdhuman_jax.disk import write_text
from osdhuman_jax.images.codec import read_image

WIDTH, HEIGHT = 176, 256  # pixels; the shorter side is that of the configs
SEED = 7  # of the degradation and of the noise

# The upright part of each photograph that is taken: its first column, and how many.
CUTS = {"astronaut": (50, 341), "grace_hopper": (60, 400), "chelsea": (120, 206)}
CUTS |= {"coffee": (150, 275), "rocket": (180, 293)}
# OpenPose's joints by `osdhuman poses`: x and y in shares of that part, score.
JOINTS = {
    "astronaut": (
        *((0.493, 0.247, 1.00), (0.455, 0.459, 1.00), (0.183, 0.456, 1.00), (0.066, 0.763, 0.76)),
        *((0.165, 0.959, 0.36), (0.726, 0.462, 1.00), (0.820, 0.729, 0.92), (0.645, 0.710, 0.75)),
        *((0.222, 0.984, 0.96), (0.213, 1.306, 0.31), (0.174, 1.602, 0.06), (0.538, 0.999, 0.98)),
        *((0.576, 1.293, 0.44), (0.444, 1.554, 0.04), (0.435, 0.200, 1.00), (0.559, 0.209, 1.00)),
        *((0.372, 0.218, 1.00), (0.613, 0.234, 1.00)),
    ),
    "grace_hopper": (
        *((0.513, 0.401, 1.00), (0.515, 0.680, 0.98), (0.154, 0.667, 1.00), (0.095, 1.076, 0.77)),
        *((0.487, 0.787, 0.86), (0.876, 0.693, 0.98), (0.832, 1.122, 0.40), (0.522, 0.855, 0.75)),
        *((0.219, 1.362, 0.03), (0.248, 1.902, 0.00), (0.274, 2.353, 0.00), (0.767, 1.373, 0.02)),
        *((0.742, 1.906, 0.00), (0.728, 2.360, 0.00), (0.424, 0.344, 1.00), (0.607, 0.342, 1.00)),
        *((0.344, 0.374, 1.00), (0.699, 0.372, 1.00)),
    ),
}
# Corners of their outlines, in the same shares.
OUTLINES = {
    "astronaut": (
        *((0.610, 0.042), (0.331, 0.099), (0.381, 0.296), (0.009, 0.506), (0.000, 1.000)),
        *((0.727, 1.000), (0.724, 0.851), (0.924, 0.660), (0.604, 0.343), (0.736, 0.184)),
    ),
    "grace_hopper": (
        *((0.435, 0.055), (0.230, 0.198), (0.342, 0.549), (0.010, 0.642), (0.000, 1.000)),
        *((0.990, 1.000), (0.995, 0.644), (0.685, 0.546), (0.760, 0.155), (0.640, 0.072)),
    ),
}
OTHERS = ("chelsea", "coffee", "rocket")  # photographs of nobody, for the stages that need none

# Each stage's config, and its number of steps here: by what the configs say that a step costs, and
# with compiling, all of it is 15 minutes of one core.
STEPS = {"vae": 150, "diffbody_prior": 250, "diffbody_cleaner": 150, "diffbody_parts": 100}
STEPS |= {"diffbody": 150}
# Whose model each one begins with.
BEFORE = {"diffbody_prior": "vae", "diffbody_parts": "diffbody_prior", "diffbody": "diffbody_parts"}
LEAD = 0.2  # scale of the guidance by parts


def write_photographs(output: Path) -> None:
    """The pictures of people and of others, upright, and what is known of the people."""
    lines = []
    for name, image in shipped().items():
        rgb = read_image(image).rgb if isinstance(image, Path) else image
        save(output / "people", name, upright(name, rgb))
        size = np.array([WIDTH, HEIGHT, 1])
        people = (np.array(JOINTS[name]) * size).round(2).tolist()
        lines.append(json.dumps({"file": f"{name}.png", "people": [people]}))
        corners = np.rint(np.array(OUTLINES[name]) * size[:2]).astype(np.int32)
        gray = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        save(output / "poses", name, cv2.fillPoly(gray, [corners], (255, 255, 255)))
    write_text(output / "poses" / "poses.jsonl", "\n".join(lines) + "\n")
    for name in OTHERS:
        save(output / "others", name, upright(name, getattr(skimage.data, name)()))


def upright(name: str, image: np.ndarray) -> np.ndarray:
    """The part of a photograph that is taken, from its upper edge, at the demonstration's size."""
    left, width = CUTS[name]
    part = image[: round(width * HEIGHT / WIDTH), left : left + width]
    return cv2.resize(part, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def changes(output: Path, stage: str) -> dict[str, object]:
    """What differs from a stage's config: its pictures, and how long and how often."""
    people, others = f"{output / 'people'}", f"{output / 'others'}"
    found: dict[str, object] = {
        "run.steps": STEPS[stage],
        "run.sample_every": STEPS[stage],
        "run.checkpoint_every": 50,
        "run.eval_images": 2,
        "run.eval_sources": (people,),
        "optim.warmup_steps": 20,
        "data.sources": (people, others),
    }
    if stage == "vae":
        found |= {"data.resize_short": WIDTH, "run.eval_crop": 128, "run.eval_height": 192}
    # Nobody is known of the other pictures, which have no parts to learn.
    if stage == "diffbody_parts":
        found["data.sources"] = (people,)
    if stage in ("diffbody_parts", "diffbody"):
        poses = f"{output / 'poses'}"
        known = (poses,) if stage == "diffbody_parts" else (poses, "")
        found |= {"data.poses": known, "run.eval_poses": (poses,)}
    # Each begins with what another left, but for those that begin with nothing.
    if stage in BEFORE:
        found["run.init"] = f"{output / 'runs' / BEFORE[stage] / 'model'}"
    if stage == "diffbody":
        found["run.cleaner"] = f"{output / 'runs' / 'diffbody_cleaner' / 'model'}"
    return found


def train(output: Path, stage: str) -> None:
    """One stage, unless its model is there."""
    workdir = output / "runs" / stage
    if (workdir / "model" / "config.json").is_file():
        print(f"{stage}: trained already, {workdir / 'model'}", flush=True)
        return
    flags = [f"--config.{name}={value}" for name, value in changes(output, stage).items()]
    run("train.py", f"--config=configs/nano_{stage}.py", f"--workdir={workdir}", *flags)


def restore(output: Path) -> None:
    """Both people degraded and restored, and the sheet of all."""
    degrade = ("--input", output / "people", "--output", output / "input", "--seed", f"{SEED}")
    run("-m", "osdhuman_jax", "degrade", *degrade, "--overwrite")
    told = ("--pose", output / "poses", "--seed", f"{SEED}")
    ways: dict[str, tuple[str, tuple[str | Path, ...]]] = {
        "cleaner": ("diffbody_cleaner", ()),
        "control": ("diffbody", told),
        "guidance": ("diffbody", (*told, "--guidance", f"{LEAD}")),
    }
    for name, (stage, flags) in ways.items():
        places = ("--input", output / "input", "--output", output / name)
        model = output / "runs" / stage / "model"
        run("infer.py", *places, "--model", model, "--overwrite", *flags)
    columns = [f"{name}={output / name}" for name in ("input", *ways)]
    columns += [f"original={output / 'people'}"]
    sheet = ("--columns", *columns, "--output", output / "sheet.png")
    run("-m", "osdhuman_jax", "compare", *sheet, "--no_detail")


def main(argv: list[str] | None = None) -> int:
    """Train and restore; 0 = done, 2 = bad output, else the status of the command that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of all that is made")
    output = parser.parse_args(argv).output.resolve()
    try:
        write_photographs(output)
        for stage in STEPS:
            train(output, stage)
        restore(output)
    except subprocess.CalledProcessError as error:
        # The command has said what was wrong.
        return error.returncode
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"diffbody_demo: {error}", file=sys.stderr)
        return 2
    print("So short a training does not restore: it shows that the stages fit together.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
