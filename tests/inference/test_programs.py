"""Programs: what they compute, on one device and on two, what they take, and what they share."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from osdhuman_jax.inference.program_cache import keep_programs
from osdhuman_jax.inference.programs import Programs, compiled

SHAPE, TOKENS = (2, 32, 32, 3), (2, 3, 8)


def lq(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, SHAPE).astype(np.float32)


def prompt() -> np.ndarray:
    return np.random.default_rng(1).standard_normal(TOKENS).astype(np.float32)


def test_the_whole_program_is_the_restorer():
    restorer = tiny.restorer()
    programs = Programs(restorer)
    tokens = np.asarray(programs.tokens(SHAPE)(lq()))
    assert programs.tokens_shape(SHAPE) == tokens.shape == TOKENS
    got = programs.whole(SHAPE, TOKENS)(lq(), tokens)
    np.testing.assert_allclose(got, jax.jit(restorer)(lq()), atol=1e-5)


def test_tiles_with_their_own_statistics_are_nearly_the_whole():
    """Two equal tiles share the statistics of one, but for the edges, which are not measured."""
    programs = Programs(tiny.restorer())
    twice = np.repeat(lq()[:1], 2, axis=0)
    tokens = np.asarray(programs.tokens(SHAPE)(twice))
    statistics = programs.measure(SHAPE, tokens.shape)(twice, tokens)
    tiles = np.asarray(programs.tiles(SHAPE, tokens.shape)(statistics, twice, tokens))
    whole = np.asarray(programs.whole(SHAPE, TOKENS)(twice, tokens))
    np.testing.assert_allclose(tiles[0], tiles[1], atol=1e-5)
    assert np.square(tiles - whole).mean() < 0.05 * whole.var()


def test_memory_is_at_least_what_goes_in_and_out():
    programs = Programs(tiny.restorer())
    programs.whole(SHAPE, TOKENS)
    programs.tokens(SHAPE)
    least = programs.weight_bytes  # those of the prompter too, which one of the two does not use
    assert least + 2 * lq().nbytes < programs.memory("whole", SHAPE) < 2**30
    assert least + lq().nbytes < programs.memory("tokens", SHAPE) < 2**30


def test_restorers_of_one_architecture_share_programs_and_not_weights():
    first, second = Programs(tiny.restorer()), Programs(tiny.restorer(seed=1))
    before = np.asarray(first.whole(SHAPE, TOKENS)(lq(), prompt()))
    misses = compiled.cache_info().misses
    assert (np.asarray(second.whole(SHAPE, TOKENS)(lq(), prompt())) != before).any()
    assert compiled.cache_info().misses == misses
    np.testing.assert_array_equal(first.whole(SHAPE, TOKENS)(lq(), prompt()), before)


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({}, "{0}/.cache/osdhuman_jax"),
        ({"XDG_CACHE_HOME": "{0}/xdg"}, "{0}/xdg/osdhuman_jax"),
        ({"JAX_COMPILATION_CACHE_DIR": "{0}/mine"}, "{0}/mine"),
    ],
)
def test_where_programs_are_kept(tmp_path, monkeypatch, given, folder):
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "{0}"} | given).items():
        monkeypatch.setenv(name, value.format(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", "as it was")
        keep_programs()
        assert jax.config.jax_compilation_cache_dir == folder.format(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
def test_where_no_program_can_be_kept_one_line_says_so(tmp_path, monkeypatch, caplog, name):
    (tmp_path / "file").touch()
    for other in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(tmp_path / "file" / "home"))
    enabled = jax.config.jax_enable_compilation_cache
    try:
        with caplog.at_level("WARNING", "osdhuman_jax"):
            keep_programs()
        assert not jax.config.jax_enable_compilation_cache
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
    (record,) = caplog.records
    assert "not kept" in record.message and "\n" not in record.message


def test_two_devices_share_a_batch():
    """In a process of its own: the number of devices is fixed before JAX starts."""
    code = (
        "import jax, numpy as np, tiny, test_programs as t;"
        "from osdhuman_jax.inference.programs import Programs;"
        "r = tiny.restorer(); p = Programs(r); run = p.whole(t.SHAPE, t.TOKENS);"
        "out = run(t.lq(), t.prompt());"
        "assert p.devices == 2 and len(out.sharding.device_set) == 2, out.sharding;"
        "assert not out.sharding.is_fully_replicated;"
        "one = jax.jit(r)(t.lq(), prompt=t.prompt());"
        "np.testing.assert_allclose(np.asarray(out), np.asarray(one), atol=1e-5)"
    )
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), str(here.parents[1])])
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **flags}, check=False)
    assert done.returncode == 0
