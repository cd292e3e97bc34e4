"""The restorer compiled ahead of time, for the few shapes that inference uses, on every device.

A program knows its memory before it runs: that is what decides between whole pictures and tiles.
Batches are split over the local devices, weights are copied to each.
"""

import logging
import time
from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from osdhuman_jax.inference.tiling import Statistics, share_norms
from osdhuman_jax.interruption import apart
from osdhuman_jax.methods.cleaner import CleanerNetwork
from osdhuman_jax.methods.diffbody import DiffBody
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.networks.target import compiler_options
from osdhuman_jax.networks.types import Image, Scalar, Tokens

Shape = tuple[int, ...]
Program = Callable[..., Any]
Leaves = tuple[jax.ShapeDtypeStruct, ...]
# What the log is told of a program, with its title and with the seconds that it took.
COMPILING, COMPILED = "compiling %s ...", "compiled in %.1f s"
log = logging.getLogger(__name__)


class Programs:
    """One restorer's weights and what it was compiled to; threads may share it."""

    def __init__(self, restorer: OneStepRestorer | CleanerNetwork | DiffBody) -> None:
        # Batches lie over all devices of this process; each has all weights. A model of many steps
        # takes one picture at a time, on one of them.
        devices = jax.local_devices()[: 1 if isinstance(restorer, DiffBody) else None]
        mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
        self.devices = len(devices)
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        self._copied = NamedSharding(mesh, PartitionSpec())
        # A scalar more goes into programs of a restorer that is guided: none is compiled anew.
        self._guidance: tuple[Shape, ...] = ((),) if restorer.guidance is not None else ()
        # Weights are arguments, not constants of a program: pipelines of one architecture share it.
        self._graphdef, weights = nnx.split(restorer)
        self._weights = jax.device_put(weights, self._copied)
        self._compiled: dict[tuple[object, ...], jax.stages.Compiled] = {}
        self._lock = Lock()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on one device."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._weights))

    @property
    def count(self) -> int:
        """How many programs were compiled so far."""
        return len(self._compiled)

    def whole(self, pictures: Shape, tokens: Shape) -> Program:
        """(pictures, tokens, guidance if any) -> restored pictures, for arrays of these shapes."""
        return self._run("whole", _whole, pictures, tokens, *self._guidance)

    def alone(self, pictures: Shape) -> Program:
        """pictures -> restored pictures or tiles, by a network without prompts and norms."""
        return self._run("alone", _alone, pictures)

    def tokens(self, pictures: Shape) -> Program:
        """pictures -> tokens of the restorer's own prompter; apart, since it sees no padding."""
        return self._run("tokens", _tokens, pictures)

    def tokens_shape(self, pictures: Shape) -> Shape:
        """Shape of what `tokens` gives, without compiling it."""
        return self._outputs(_tokens, pictures).shape

    def measure(self, tiles: Shape, tokens: Shape) -> Program:
        """(tiles, tokens, guidance if any) -> statistics of every group norm over all tiles."""
        return self._run("measure", _measure, tiles, tokens, *self._guidance)

    def tiles(self, tiles: Shape, tokens: Shape) -> Program:
        """(statistics, tiles, tokens, guidance if any) -> restored tiles."""
        measured = self._outputs(_measure, tiles, tokens, *self._guidance)
        return self._run("tiles", _tiles, tiles, tokens, *self._guidance, known=measured)

    def other(self, title: str, function: Callable, *arguments: object) -> jax.stages.Compiled:
        """`function` of graph, weights and arrays like these, compiled; call it by `call`."""

        return compiled(title, function, self._graphdef, *self._signature(arguments))

    def outputs(self, function: Callable, *arguments: object) -> Any:
        """Shapes of what such a program gives, without compiling it."""
        return traced(function, self._graphdef, *self._signature(arguments)).out_info

    def _signature(self, arguments: tuple[object, ...]) -> tuple[Hashable, Leaves]:
        """Tree and leaves of abstract arguments, weights before them."""

        def abstract(
            x: jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct,
        ) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._copied)

        weights = jax.tree.map(self._like, self._weights)
        leaves, tree = jax.tree.flatten((weights, *jax.tree.map(abstract, arguments)))
        return tree, tuple(leaves)

    def call(self, title: str, function: Callable, *arguments: object) -> Any:
        """What such a program gives."""
        return self.other(title, function, *arguments)(self._weights, *arguments)

    def memory(self, kind: str, pictures: Shape) -> int:
        """Bytes on one device that the program of this kind and shape takes, weights included."""
        # The compiler's own account.
        (program,) = (p for key, p in self._compiled.items() if key[:2] == (kind, pictures))
        return footprint(program)

    def _run(
        self,
        kind: str,
        function: Callable,
        pictures: Shape,
        *shapes: Shape,
        known: nnx.State | None = None,
    ) -> Program:
        """The program, compiled if it is new, with the weights already given."""
        # Two threads that ask for one program compile it once.
        key = (kind, pictures, *shapes)
        with self._lock:
            if key not in self._compiled:
                arguments = self._arguments((pictures, *shapes), known)
                title = _title(kind, pictures)
                self._compiled[key] = compiled(title, function, self._graphdef, *arguments)
            return partial(self._compiled[key], self._weights)

    def _outputs(self, function: Callable, *shapes: Shape) -> Any:
        """Shapes of a program's outputs, by the trace that it is compiled of."""
        return traced(function, self._graphdef, *self._arguments(shapes)).out_info

    def _arguments(
        self, shapes: tuple[Shape, ...], known: nnx.State | None = None
    ) -> tuple[Hashable, Leaves]:
        """Tree and leaves of a program's abstract arguments: weights, arrays, what is known."""
        arguments: list[object] = [self._abstract(shape) for shape in shapes]
        if known is not None:
            arguments.insert(0, jax.tree.map(lambda x: self._abstract(x.shape), known))
        weights = jax.tree.map(self._like, self._weights)
        leaves, tree = jax.tree.flatten((weights, *arguments))
        return tree, tuple(leaves)

    def _like(self, leaf: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._copied)

    def _abstract(self, shape: Shape) -> jax.ShapeDtypeStruct:
        """A float32 array; four axes are pictures, three tokens, whose first is the batch's."""
        # Statistics, of two axes, are the same for all tiles.
        split = len(shape) > 2 and shape[0] % self.devices == 0
        sharding = self._split if split else self._copied
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def footprint(program: jax.stages.Compiled) -> int:
    """Bytes on one device that a program takes, its arguments included."""
    found = program.memory_analysis()
    if found is None:
        return 0
    # An output that takes an argument's place needs no room of its own.
    parts = ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes")
    return sum(getattr(found, part) for part in parts) - found.alias_size_in_bytes


def _title(kind: str, shape: Shape) -> str:
    """What a program is, in words for the person who waits for it."""
    # Width before height, as people say it.
    size = f"{shape[2]} x {shape[1]}"
    return {
        "whole": f"the restorer for {size}",
        "alone": f"the network for {size}",
        "tokens": f"the prompt extractor for {size}",
        "measure": f"the restorer's measuring of tiles of {size}",
        "tiles": f"the restorer for tiles of {size}",
    }[kind]


@lru_cache(maxsize=256)
def compiled(
    title: str,
    function: Callable,
    graphdef: nnx.GraphDef,
    tree: Hashable,
    leaves: Leaves,
) -> jax.stages.Compiled:
    """A function of a network and abstract arguments; restorers of one architecture share it.

    A signal's handler is heard meanwhile, and `title` told to the log, with the time it took.
    """
    log.info(COMPILING, title)
    start = time.perf_counter()
    # Tracing is Python's, and heeds settings of this thread; compiling is not, and takes longest.
    lowered = traced(function, graphdef, tree, leaves).lower()
    made = apart(partial(lowered.compile, compiler_options()))
    log.info(COMPILED, time.perf_counter() - start)
    return made


@lru_cache(maxsize=256)
def traced(
    function: Callable, graphdef: nnx.GraphDef, tree: Hashable, leaves: Leaves
) -> jax.stages.Traced:
    """A function traced to JAX's own instructions: shapes of its outputs are known by then.

    Weights that a program does not use are on the device all the same: its account counts them.
    """
    program = jax.jit(partial(function, graphdef), keep_unused=True)
    return program.trace(*jax.tree.unflatten(tree, leaves))


def _whole(
    graphdef: nnx.GraphDef, weights: nnx.State, lq: Image, prompt: Tokens, *guidance: Scalar
) -> jax.Array:
    """The restorer with its weights as arguments: closed over, they would become constants."""
    return nnx.merge(graphdef, weights)(lq, prompt, *guidance)


def _alone(graphdef: nnx.GraphDef, weights: nnx.State, lq: Image) -> jax.Array:
    return nnx.merge(graphdef, weights)(lq)


def _tokens(graphdef: nnx.GraphDef, weights: nnx.State, pictures: Image) -> Tokens:
    return nnx.merge(graphdef, weights).tokens(pictures)


def _measure(
    graphdef: nnx.GraphDef, weights: nnx.State, tiles: Image, prompt: Tokens, *guidance: Scalar
) -> nnx.State:
    restorer = nnx.merge(graphdef, weights)
    # In the traced copy alone: the caller's network keeps its norms.
    share_norms(restorer, measure=True)
    restorer(tiles, prompt, *guidance)
    return nnx.state(restorer, Statistics)


def _tiles(
    graphdef: nnx.GraphDef,
    weights: nnx.State,
    statistics: nnx.State,
    tiles: Image,
    prompt: Tokens,
    *guidance: Scalar,
) -> jax.Array:
    restorer = nnx.merge(graphdef, weights)
    share_norms(restorer, measure=False)
    # What `_measure` gave, in the place of what these tiles would show.
    nnx.update(restorer, statistics)
    return restorer(tiles, prompt, *guidance)
