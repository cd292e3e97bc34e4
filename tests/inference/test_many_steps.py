"""DiffBody in use, the tiny one: what a picture depends on and what not, tiles, guidance."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_diffbody
from refusals import one_line
from tiny_diffbody import picture

from osdhuman_jax.data.structures import Structure, nobody
from osdhuman_jax.images.codec import Picture
from osdhuman_jax.inference import many_steps
from osdhuman_jax.inference.many_steps import key_data
from osdhuman_jax.inference.notes import Request
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.inference.plans import Plan
from osdhuman_jax.inference.poses import BlazePose, Pose
from osdhuman_jax.inference.settings import Sampling, sampled
from osdhuman_jax.methods.prompts import TagPrompter
from osdhuman_jax.methods.sampler import timesteps
from osdhuman_jax.networks.blazepose import Graph


class Finder(BlazePose):
    """Stands for BlazePose: a person in the middle, or nobody, of a given picture."""

    def __init__(self, found: bool = True) -> None:
        self.found, self.landmarks, self.seen = found, None, []

    def __call__(self, rgb: np.ndarray) -> list[Pose]:
        self.seen.append(rgb)
        (height, width), square = rgb.shape[:2], np.array([[0.05, 0, 2], [0, 0.05, 3]])
        points = np.linspace([1, 1], [width - 2, height - 2], 17)
        attention = np.full((height, width), 0.5, np.float32)
        return [Pose(points, np.full(17, 0.9), attention, square)] * self.found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_diffbody.save(tmp_path_factory.mktemp("many") / "model")


@pytest.fixture
def finder(monkeypatch) -> Finder:
    made = Finder()
    monkeypatch.setattr(many_steps, "load_blazepose", lambda _: made)
    return made


@pytest.fixture(scope="module")
def loaded(folder) -> Pipeline:
    return Pipeline.from_folder(folder, bucket=8)


@pytest.fixture
def pipeline(loaded, finder) -> Pipeline:
    assert loaded.many_steps is not None
    loaded.many_steps._blazepose = None
    return loaded


PICTURES = [Picture(picture(0)), Picture(picture(1, (20, 16))), Picture(picture(2))]
REQUESTS = [Request(name) for name in "abc"]


def restored(pipeline, pictures=PICTURES, requests=REQUESTS, **asked) -> list[np.ndarray]:
    guidance = asked.pop("guidance", None)
    wish = Sampling(**asked)
    found = pipeline.restore(pictures, guidance=guidance, sampling=wish, requests=requests)
    return [one.rgb for one in found]


def test_a_picture_is_its_own_whatever_is_beside_it(pipeline, folder):
    first = restored(pipeline)
    assert [a.shape for a in first] == [p.rgb.shape for p in PICTURES]
    backwards = restored(pipeline, PICTURES[::-1], REQUESTS[::-1])[::-1]
    alone = [restored(pipeline, [p], [r])[0] for p, r in zip(PICTURES, REQUESTS, strict=True)]
    batched = restored(Pipeline.from_folder(folder, bucket=8, batch_size=2))
    for others in (backwards, alone, batched):
        assert all((a == b).all() for a, b in zip(first, others, strict=True))


@pytest.mark.parametrize(
    "asked",
    [
        {"seed": 1},
        {"steps": 3},
        {"sampler": "ddim"},
        {"control_scale": 0.5},
        {"prompt": "dog"},
        {"pose": "off"},
        {"negative": "cat"},
        {"cfg": 3.0},
    ],
    ids=str,
)
def test_what_is_asked_for_changes_the_picture(pipeline, asked):
    plain, other = (restored(pipeline, PICTURES[:1], REQUESTS[:1], **a)[0] for a in ({}, asked))
    assert np.abs(plain.astype(int) - other).max() > 0
    if "cfg" not in asked and "negative" not in asked:
        renamed = restored(pipeline, PICTURES[:1], REQUESTS[1:2], **asked)[0]
        assert np.abs(renamed.astype(int) - other).max() > 0


def test_the_key_is_the_seed_s_and_the_name_s():
    keys = [key_data(seed, name) for seed, name in ((0, "a"), (0, "b"), (1, "a"), (0, "\udcff"))]
    assert len({tuple(np.asarray(key)[0]) for key in keys}) == 4
    assert (key_data(0, "a") == keys[0]).all()


def run(pipeline, plan=None, request=REQUESTS[0], **asked):
    """Output and facts of the first picture, uncorrected, by a plan."""
    _, wish = sampled(None, pipeline.abilities, asked.pop("guidance", None), Sampling(**asked))
    pixels = PICTURES[0].rgb
    plan = plan or Plan(pipeline.padded_size(pixels.shape[:2]), 1)
    return pipeline.many_steps.run(plan, pixels, request, wish)


def test_people_are_looked_for_in_the_cleaned_picture(pipeline, finder):
    output, facts = run(pipeline)
    assert facts == {"text": "", "text_scale": 1.0, "guided": False, "people": 1}
    (seen,) = finder.seen
    assert seen.shape == PICTURES[0].rgb.shape and (seen != PICTURES[0].rgb).any()
    finder.found = False
    empty, facts = run(pipeline)
    assert facts["people"] == 0
    off, facts = run(pipeline, pose="off")
    assert facts["people"] == 0 and (off == empty).all() and (output != empty).any()
    given = Request("a", structure=nobody((24, 16)))
    assert (run(pipeline, request=given, pose="digest").output == empty).all()
    assert len(finder.seen) == 2


def test_given_people_are_scaled_with_their_picture(pipeline, monkeypatch):
    drawn = []
    draw = many_steps.draw_skeleton

    def spy(people, size):
        drawn.append(np.asarray(people))
        return draw(people, size)

    monkeypatch.setattr(many_steps, "draw_skeleton", spy)
    person = np.tile(np.array([[[10.0, 20.0, 0.9]]], np.float32), (1, 18, 1))
    structure = Structure(person, np.ones((48, 32), np.float32))
    _, facts = run(pipeline, request=Request("a", "dog", structure), pose="digest")
    assert facts["people"] == 1 and (facts["text"], facts["text_scale"]) == ("dog", 4.0)
    np.testing.assert_allclose(drawn[0][0, 0, 0], [4.75, 9.75, 0.9])
    assert not drawn[0][0, 1:].any()


def test_text_of_all_comes_before_a_caption(pipeline):
    request = Request("a", "a cat")
    assert run(pipeline, request=request, prompt="dog").facts["text"] == "dog"
    assert run(pipeline, request=request).facts["text"] == "a cat"
    scales = [run(pipeline, **a).facts["text_scale"] for a in ({"cfg": 2.0}, {"negative": ""})]
    assert scales == [2.0, 4.0]


def test_one_tile_is_the_whole_and_many_are_near(pipeline):
    whole = run(pipeline).output
    padded = pipeline.padded_size((24, 16))
    one = run(pipeline, Plan(padded, 1, padded)).output
    # Norms are measured without the tile's edges: of the VAE alone.
    assert np.abs(one - whole).mean() < 0.2 * whole.std()
    noise = pipeline.many_steps._noise
    plan, count = Plan(padded, 2, (16, 16)), []

    def spy(*args):
        count.append(args)
        return noise(*args)

    pipeline.many_steps._noise = spy
    try:
        tiled, facts = run(pipeline, plan, guidance=1.0)
    finally:
        del pipeline.many_steps._noise
    assert len(count) == 2 and tiled.shape == whole.shape and np.isfinite(tiled).all()
    assert not facts["guided"]
    assert np.corrcoef(tiled.ravel(), whole.ravel())[0, 1] > 0.5


def test_noise_in_tiles_is_the_noise_where_nothing_reaches_over(pipeline, monkeypatch):
    """Of networks that see a place alone, windows make the very same."""
    from osdhuman_jax.inference import step_programs

    steps = pipeline.many_steps
    monkeypatch.setattr(
        steps.programs,
        "call",
        lambda title, function, z, t, given: (
            2 * z + given.hint[..., :4] + t.astype("f4")[:, None, None, None]
        ),
    )
    z, hint = (np.random.default_rng(i).normal(size=(20, 12, 4)).astype("f4") for i in (0, 1))
    given = step_programs.Given(jnp.asarray(hint[None]), jnp.zeros((1, 2, 8)))
    for tile in ((8, 8), (40, 24), (16, 24)):
        made = steps._noise(Plan((40, 24), 3, tile), jnp.int32(7), z, given)
        np.testing.assert_allclose(made[0], 2 * z + hint + 7, rtol=1e-5, atol=1e-5)


def test_memory_decides_for_tiles(folder, finder, caplog):
    pixels = picture(3, (64, 64))
    whole = Pipeline.from_folder(folder, bucket=8)
    assert whole.many_steps is not None
    made = whole.restore([Picture(pixels)], sampling=Sampling(seed=2))
    assert whole.tiling((64, 64)) is None and made[0].size == (64, 64)
    with one_line(RuntimeError, "out of memory: the smallest plan takes"):
        Pipeline.from_folder(folder, max_memory=50_000).restore([Picture(pixels)])


@pytest.mark.parametrize("text", [True, False])
def test_guidance_lowers_what_it_is_to_lower(text, tmp_path, finder):
    """By the parser; and a model that its own pictures prompt is guided too."""
    pipeline = Pipeline.from_folder(tiny_diffbody.save(tmp_path, text=text), bucket=8)
    plain, facts = run(pipeline, steps=6)
    assert facts["text"] == ("" if text else None)
    led, facts = run(pipeline, steps=6, guidance=0.5)
    assert facts["guided"]
    parser, steps = pipeline.model.parser, pipeline.many_steps
    reg = steps._clean(PICTURES[0].rgb)[None]
    loss = many_steps.step_programs.parser_loss(jax.jit(lambda x: parser(x)), jnp.asarray(reg))
    assert loss(jnp.asarray(led[None]))[0] < loss(jnp.asarray(plain[None]))[0]


def test_above_the_window_a_guided_step_is_as_without_guidance(pipeline):
    assert timesteps(1) == [999]
    plain, led = (run(pipeline, steps=1, guidance=scale).output for scale in (0.0, 1.0))
    np.testing.assert_array_equal(plain, led)
    plain, led = (run(pipeline, steps=4, guidance=scale).output for scale in (0.0, 1.0))
    assert (plain != led).any()


@pytest.mark.slow
def test_guidance_by_joints(tmp_path, finder, monkeypatch):
    """BlazePose's landmarker stands in as a graph whose fourth output is the square, made small."""

    def graph(_graph, weights, square):
        small = square.reshape(1, 32, 8, 32, 8, 3).mean((2, 4))
        return (small,) * 3 + (jnp.tile(weights[0] * small, (1, 1, 1, 13)),)

    monkeypatch.setattr(many_steps.step_programs, "run", graph)
    finder.landmarks = (Graph((), (), {}, 0, ()), {0: np.float32(1)})
    pipeline = Pipeline.from_folder(tiny_diffbody.save(tmp_path, parser=False), bucket=8)
    plain, led = (run(pipeline, steps=4, guidance=s) for s in (0.0, 1.0))
    assert led.facts["guided"] and not plain.facts["guided"] and (plain.output != led.output).any()
    finder.found = False
    plain, led = (run(pipeline, steps=4, guidance=s) for s in (0.0, 1.0))
    np.testing.assert_allclose(plain.output, led.output, atol=1e-4)


def test_a_tagger_says_what_is_not_said(pipeline, monkeypatch):
    class Tagger(TagPrompter):
        input_size = 4

        def __init__(self):
            """Without networks."""

        def tags(self, views):
            assert views.shape == (1, 4, 4, 3)
            return [["dog", "cat"]]

    monkeypatch.setattr(pipeline.model, "tagger", Tagger())
    assert run(pipeline).facts["text"] == "dog, cat"
    assert run(pipeline, prompt="").facts == {
        "text": "",
        "text_scale": 1.0,
        "guided": False,
        "people": 1,
    }


def test_a_cleaner_that_is_not_finite(pipeline, monkeypatch):
    monkeypatch.setattr(
        pipeline.many_steps, "_clean", lambda p: np.full(p.shape, np.nan, np.float32)
    )
    with one_line(RuntimeError, "the cleaner's output is not finite"):
        restored(pipeline)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
        ({"steps": 1001}, "steps must be between 1 and 1000"),
        ({"sampler": "euler"}, "sampler must be one of ddpm, ddim"),
        ({"cfg": float("nan")}, "cfg must be at least 0, got nan"),
        ({"control_scale": -1.0}, "control_scale must be at least 0"),
        ({"prompt": "a \udcff dog"}, "prompt must be text in UTF-8"),
        ({"negative": "\ud800"}, "negative must be text in UTF-8"),
        ({"seed": -1}, "seed must be between 0 and 4294967295"),
        ({"guidance": -0.1}, "guidance must be at least 0"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(loaded, asked, said):
    guidance = asked.pop("guidance", None)
    with one_line(ValueError, said):
        sampled(None, loaded.abilities, guidance, Sampling(**asked))


@pytest.mark.parametrize(
    ("change", "guidance", "asked", "said"),
    [
        (None, None, {"steps": 3, "seed": 1}, "steps, seed: for models of many steps"),
        (None, 2.0, {}, "guidance is for models of two prompts"),
        ({"text": False}, None, {"prompt": "a"}, "prompt: for models that are prompted by texts"),
        ({"text": False}, None, {"cfg": 2.0}, "cfg: for models that are prompted by texts"),
        ({"skeleton": False, "attention": False}, None, {"pose": "d"}, "this one is shown none"),
        ({"parser": False, "people": False}, 1.0, {}, "guidance by parts needs"),
        ({"parser": False}, 1.0, {"pose": "d"}, "guidance by parts needs"),
    ],
)
def test_what_a_model_does_not_take_is_refused(loaded, change, guidance, asked, said):
    can = loaded.abilities._replace(**change) if change is not None else None
    with one_line(ValueError, said):
        sampled(None, can, guidance, Sampling(**asked))


def test_a_model_s_own_settings_are_proved_as_well(loaded):
    for own, said in (
        ({"cfg": float("nan")}, "cfg must be at least 0, got nan"),
        ({"steps": 0}, "steps must be between"),
        ({"guidance": float("inf")}, "guidance must be at least 0, got inf"),
    ):
        can = loaded.abilities._replace(sample=replace(loaded.abilities.sample, **own))
        with one_line(ValueError, said):
            sampled(None, can, None, Sampling())


def test_what_is_not_asked_for_is_the_model_s(loaded):
    best = replace(loaded.abilities.sample, steps=7, sampler="ddim", guidance=0.5)
    can = loaded.abilities._replace(sample=best)
    _, made = sampled(None, can, None, Sampling())
    assert made == Sampling(7, "ddim", None, 1.0, 0.5, None, None, 0, "blazepose", None)
    _, made = sampled(None, can, 0.0, Sampling(prompt="", captions="digest", pose="off"))
    assert (made.part_guidance, made.captions, made.pose) == (0.0, None, "off")
