"""What a restoration leaves as it was: outside a mask, beside people, and where faces are lost."""

from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import skimage.data
from folder_files import lines
from onnx import TensorProto, helper
from refusals import one_line, status
from tiny import PHOTO, halving

from osdhuman_jax import Restorer
from osdhuman_jax.commands import restore
from osdhuman_jax.config import SampleConfig, UseConfig
from osdhuman_jax.data.sources import DataError
from osdhuman_jax.images.codec import Picture, read_image, write_png
from osdhuman_jax.images.sizes import enlarge
from osdhuman_jax.inference import faces
from osdhuman_jax.inference.faces import Embedding, KeepFaces, open_detector
from osdhuman_jax.inference.folder_plan import plan
from osdhuman_jax.inference.folder_run import Runner
from osdhuman_jax.inference.ledger import held
from osdhuman_jax.inference.onnx_networks import OnnxError
from osdhuman_jax.inference.regions import open_people, read_mask
from osdhuman_jax.inference.restraint import Restrainer, open_restrainer
from osdhuman_jax.inference.settings import (
    Restraint,
    Settings,
    identity,
    strong,
    without_strength,
)
from osdhuman_jax.weights.abilities import Abilities
from osdhuman_jax.weights.torch_files import WeightsError

FACE = np.ascontiguousarray(skimage.data.astronaut()[:224, 112:336])  # of one person
BOX = (40, 40, 80, 80)
HALF = np.zeros((60, 48), np.uint8)  # a mask of PHOTO's size
HALF[:, :20], HALF[:, 20:24] = 255, 128


def at_the_box(rgb: np.ndarray, sure: bool = True) -> list[faces.Box]:
    """Stands for a detector: a face is where the box is not flat."""
    left, top, width, height = BOX
    return [BOX] if rgb[top : top + height, left : left + width].std() > 1 else []


def test_a_face_that_is_lost_comes_back(tmp_path):
    """By OpenCV's cascade, through a folder's run, whose model leaves mere gray."""
    write_png(tmp_path / "in" / "a.png", FACE) if (tmp_path / "in").mkdir() is None else None
    write_png(tmp_path / "in" / "b.png", np.full((40, 40, 3), 90, np.uint8))
    pipeline, restrain = halving(0.0), open_restrainer(UseConfig(keep_faces=0.8))
    assert restrain is not None
    settings = Settings(restraint=restrain.settings)
    with held(tmp_path / "out") as ledger:
        runner = Runner(pipeline, settings, tmp_path / "out", ledger, restrain=restrain)
        runner.run(plan(str(tmp_path / "in"), tmp_path / "out", settings))
    # What the record and the person are told.
    line, none = sorted(lines(tmp_path / "out"), key=lambda line: line["output"])
    assert (line["faces_before"], line["faces_after"], line["keep_faces"]) == (1, 1, 0.8)
    (face,) = line["faces"]
    assert face["kept"] and not face["found"] and face["similarity"] < 0.8
    assert (none["faces_before"], none["faces_after"], none["faces"]) == (0, 0, [])
    assert [text for _, text in runner.remarks if "--keep_faces" in text] == [
        "1 face is as in the input (1 lost by the restoration; --keep_faces)"
    ]
    # The input's face, bit for bit, in a picture that is gray elsewhere.
    left, top, width, height = face["box"]
    middle = np.s_[top + height // 3 : top + height // 2, left + width // 3 : left + width // 2]
    result = read_image(tmp_path / "out" / "a.png").rgb
    assert np.array_equal(result[middle], FACE[middle])
    assert (result[-8:] == result[-1, -1]).all()


@pytest.mark.parametrize(("alike", "kept"), [(0.79, True), (0.8, False)])
def test_a_face_that_is_changed_comes_back(alike, kept):
    keep = KeepFaces(0.8, at_the_box, lambda before, after, box: alike)
    source, restored = Picture(FACE), Picture(255 - FACE)
    made = keep(source, restored)
    assert made.facts["faces"] == [
        {"box": [*BOX], "found": True, "similarity": alike, "kept": kept}
    ]
    assert np.array_equal(made.picture.rgb[80, 80], FACE[80, 80]) == kept
    assert np.array_equal(made.picture.rgb[-20:], restored.rgb[-20:])
    assert ("1 changed" in made.remark) == kept


def test_likeness_sees_what_was_drawn_and_forgives_noise_and_brightness():
    noisy = np.clip(FACE + np.random.default_rng(0).normal(0, 20, FACE.shape), 0, 255)
    drawn, lighter = FACE.copy(), np.clip(FACE, 0, 235) + 20
    drawn[60:100, 70:76] = 0
    assert faces.likeness(FACE, FACE, BOX) == 1
    assert faces.likeness(noisy.astype(np.uint8), FACE, BOX) > 0.9
    assert faces.likeness(np.clip(FACE, 0, 235), lighter.astype(np.uint8), BOX) > 0.99
    assert faces.likeness(drawn, FACE, BOX) < 0.8
    assert faces.likeness(np.zeros_like(FACE), np.full_like(FACE, 255), BOX) == 1


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("upscale", [1.0, 2.0])
def test_outside_of_a_mask_is_the_input_bit_for_bit(kind, upscale):
    picture = Picture((PHOTO.astype(kind) * (257 if kind == np.uint16 else 1)).astype(kind))
    (plain,) = halving().restore([picture], upscale)
    (made,) = halving().restore([picture], upscale, mask=HALF)
    source, edge = enlarge(picture, upscale).rgb, round(upscale)
    far, near = round(25 * upscale), round(20 * upscale) - edge
    assert np.array_equal(made.rgb[:, far:], source[:, far:])
    assert np.array_equal(made.rgb[:, :near], plain.rgb[:, :near])
    assert not np.array_equal(plain.rgb[:, far:], source[:, far:])


def test_beside_people_is_the_input():
    def people(rgb):
        return (HALF == 255).astype(np.float32)

    restrain, source = Restrainer(Restraint(), people=people), Picture(PHOTO)
    made = restrain(source, Picture(255 - PHOTO))
    assert np.array_equal(made.picture.rgb[:, 20:], PHOTO[:, 20:])
    assert np.array_equal(made.picture.rgb[:, :20], 255 - PHOTO[:, :20])
    assert made.facts == {"people_share": round(20 / 48, 4)} and not made.remarks
    nobody = Restrainer(Restraint(), people=lambda rgb: np.zeros(rgb.shape[:2], np.float32))
    made = nobody(source, Picture(255 - PHOTO))
    assert np.array_equal(made.picture.rgb, PHOTO) and "nobody" in made.remarks[0]


def test_a_mask_is_of_a_file_or_an_array(tmp_path):
    cv2.imwrite(str(tmp_path / "mask.png"), HALF)
    expected = HALF.astype(np.float32) / 255
    np.testing.assert_allclose(read_mask(tmp_path / "mask.png"), expected, atol=1e-6)
    assert np.array_equal(read_mask(HALF > 0), HALF > 0)
    # White strokes on nothing, as a brush leaves them.
    cv2.imwrite(str(tmp_path / "brush.png"), np.dstack([*[np.full_like(HALF, 255)] * 3, HALF]))
    np.testing.assert_allclose(read_mask(tmp_path / "brush.png"), expected, atol=1e-6)
    with one_line(DataError, "not float64"):
        read_mask(np.zeros((4, 4)))


def many(control_scale: float = 1.0) -> Abilities:
    sample = SampleConfig(control_scale=control_scale)
    return Abilities(sample, False, False, False, False, True, True)


@pytest.mark.parametrize(
    ("use", "guidance", "can", "strength", "expected"),
    [
        (UseConfig(), None, None, 0.25, {"blend": 0.25}),
        (UseConfig(), 3.5, None, 0.0, {"guidance": 1.0}),
        (UseConfig(), 3.5, None, 0.5, {"guidance": 3.1623}),
        (UseConfig(), 3.5, None, 1.0, {"guidance": 10.0}),
        (UseConfig(strength_of="blend"), 2.0, None, 0.5, {"blend": 0.5}),
        (UseConfig(), None, many(), 0.5, {"control_scale": 0.5}),
    ],
)
def test_strength_is_what_the_method_has(use, guidance, can, strength, expected):
    assert strong(use, guidance, can, strength) == expected
    asked = dict.fromkeys(("blend", "guidance", "control_scale"))
    assert without_strength(use, guidance, can, None, asked) == asked
    assert without_strength(use, guidance, can, strength, asked) == asked | expected
    with one_line(ValueError, "give one of them"):
        without_strength(use, guidance, can, strength, asked | dict.fromkeys(expected, 1.0))


def test_the_python_class_takes_the_same_names(tmp_path):
    restorer, mask = Restorer(halving()), tmp_path / "mask.png"
    cv2.imwrite(str(mask), HALF)
    assert np.array_equal(restorer(PHOTO, strength=0.25), restorer(PHOTO, blend=0.25))
    assert np.array_equal(restorer(PHOTO, mask=str(mask)), restorer(PHOTO, mask=HALF))
    assert np.array_equal(restorer(PHOTO, people_only=False), restorer(PHOTO))
    for options in ({"strength": 1.5}, {"keep_faces": -1.0}, {"mask": HALF[:9]}):
        with one_line(ValueError):
            restorer(PHOTO, **options)


def test_another_mask_or_none_is_another_output():
    """Records of earlier versions, which know of none, are those of nothing asked."""
    made = identity("0", "fp32", Settings(restraint=Restraint(mask="1", keep_faces=0.5)))
    plain = identity("0", "fp32", Settings())
    names = {name for name, value in made.items() if plain[name] != value}
    assert names == {"mask", "keep_faces"} and plain["mask"] is plain["keep_faces"] is None


def embedding(path: Path, entry: list, leaving: list, nodes: list | None = None) -> Path:
    """A network whose vector is the mean of each channel's rows."""
    made = nodes or [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2], keepdims=0)]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, entry)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, leaving)],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def test_somebodys_embedding_compares_faces(tmp_path):
    alike = Embedding(embedding(tmp_path / "a.onnx", ["n", 3, 112, 112], ["n", 112]))
    assert alike(FACE, FACE, BOX) == pytest.approx(1)
    assert alike(FACE, 255 - FACE, BOX) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("entry", "leaving"), [([1, 3, 96, 112], [1, 112]), ([2, 3, 112, 112], [2, 112])]
)
def test_embeddings_of_other_shapes_are_refused(tmp_path, entry, leaving):
    with one_line(OnnxError, "e.onnx: "):
        Embedding(embedding(tmp_path / "e.onnx", entry, leaving))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mask", "mask.png"], "a.png: the mask has 48 x 9 pixels, the picture 48 x 60"),
        (["--mask", "none.png"], "none.png"),
        (["--strength", "0.5", "--blend", "0.5"], "strength is this model's blend"),
        (["--keep_faces", "0", "--face_detector", "blazeface"], "only for keep_faces above 0"),
        (["--face_embedding", "e.onnx"], "e.onnx: takes [1, 3, 9, 9]"),
        (["--face_embedding", "none.onnx"], "none.onnx: no such file"),
        (["--face_detector", "yunet:x"], "give blazeface"),
        (["--people_only", "photo.jpg"], "give blazepose"),
        (["--people_only", "blazepose:none.whl"], "none.whl: no wheel of mediapipe"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, flags, said
):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    write_png(Path("in/a.png"), PHOTO)
    cv2.imwrite("mask.png", HALF[:9])
    embedding(Path("e.onnx"), [1, 3, 9, 9], [1, 9])
    assert status(restore.main, "--input", "in", "--output", "out", *flags) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told
    assert not Path("out").exists()


def test_sources_of_people_and_faces_are_proved(monkeypatch):
    with one_line(ValueError, "onnx:FILE,MAP.json"):
        open_people("onnx:a.onnx")
    with one_line(ValueError, "blazeface:FILE"):
        open_detector("blazeface:")

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    for name, kind in (("people_only", "blazepose"), ("face_detector", "blazeface")):
        with one_line(WeightsError, f"mediapipe: not installed: pip .* and {kind}:THE.whl"):
            open_restrainer(UseConfig(keep_faces=0.5), **{name: kind})
