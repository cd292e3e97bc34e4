"""Prompt extractors (section 3.3 and Table 4): image -> cross-attention tokens.

    HFIE   p = MHA(Q, E(I), E(I)) with learnable queries Q and RAM's frozen embeddings E (Eq. 5)
    tags   RAM's or DAPE's tags as text through CLIP; which of the two is a matter of weights
    fixed  the same tokens for every image: a single space through CLIP ("null"), or a file

Whatever restores or trains needs one of them. All are a `Prompter`: images (B, H, W, 3) in [-1, 1]
in, tokens (B, N, D) out. The first and the last are modules and live in a `OneStepRestorer`. Tags
are strings, which no compiled program holds: `TagPrompter` runs outside, and the restorer is given
its tokens.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Int32

from osdhuman_jax.images.sizes import Pixels, squash
from osdhuman_jax.networks.attention import attend, join_heads, split_heads
from osdhuman_jax.networks.clip import CLIPTextModel
from osdhuman_jax.networks.configs import HFIEConfig
from osdhuman_jax.networks.layers import Projection
from osdhuman_jax.networks.swin import RAMEncoder
from osdhuman_jax.networks.tagger import Tagger, select_tags
from osdhuman_jax.networks.types import Image, Tokens

Tokenize = Callable[[Sequence[str]], Int32[np.ndarray, "b t"]]
# On a device or on the host.
Images = Image | Float[np.ndarray, "b h w 3"]


@runtime_checkable
class Prompter(Protocol):
    """What makes a prompt of pictures, whatever it is made of."""

    @property
    def input_size(self) -> int:
        """Side of the square to which it squashes what it sees, in pixels."""
        ...

    def __call__(self, images: Images, /) -> Tokens:
        """Tokens (B, N, D) for the U-Net's cross-attention, of pictures in [-1, 1] of any size."""
        ...


class HFIE(nnx.Module):
    """Multi-head attention of learnable queries to image embeddings (B, N, kv_dim)."""

    def __init__(
        self,
        config: HFIEConfig,
        *,
        dim: int,
        kv_dim: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if config.num_heads < 1 or dim % config.num_heads:
            raise ValueError(f"tokens of width {dim} have no {config.num_heads} heads")
        # Uniform in Glorot's bounds, as PyTorch's MultiheadAttention begins.
        linear = partial(
            Projection,
            kernel_init=jax.nn.initializers.xavier_uniform(),
            dtype=dtype,
            rngs=rngs,
        )
        query = jax.random.normal(rngs.params(), (config.num_queries, dim), jnp.float32)
        self.num_heads = config.num_heads
        self.query = nnx.Param(config.query_init_std * query)
        self.q_proj = linear(dim, dim)
        self.k_proj = linear(kv_dim, dim)
        self.v_proj = linear(kv_dim, dim)
        self.out_proj = linear(dim, dim)

    def __call__(self, embeddings: Float[Array, "b m e"]) -> Tokens:
        """Tokens (B, num_queries, dim), Eq. 5."""
        query = self.query[...]  # [N, D]
        query = jnp.broadcast_to(query, (embeddings.shape[0], *query.shape))  # [B, N, D]
        q, k, v = (
            split_heads(y, self.num_heads)
            for y in (self.q_proj(query), self.k_proj(embeddings), self.v_proj(embeddings))
        )  # [B, N, heads, D / heads] and, of keys and values, [B, M, heads, D / heads]
        return self.out_proj(join_heads(attend(q, k, v)))


class HFIEPrompter(nnx.Module):
    """RAM's image encoder and HFIE: picture in [-1, 1] -> tokens."""

    def __init__(self, image_encoder: RAMEncoder, hfie: HFIE):
        self.image_encoder = image_encoder
        self.hfie = hfie

    @property
    def input_size(self) -> int:
        """Side of the square to which pictures are resized, in pixels."""
        return self.image_encoder.input_size

    def __call__(self, images: Images) -> Tokens:
        return self.hfie(self.image_encoder(jnp.asarray(images)))


class FixedPrompter(nnx.Module):
    """Gives the same tokens (N, D) for every picture."""

    # Nothing is looked at: one pixel of a picture is enough.
    input_size = 1

    def __init__(self, tokens: Float[Array, "n d"]):
        # A parameter, so that it is an argument of compiled programs and not a constant in them.
        self.tokens = nnx.Param(tokens)

    def __call__(self, images: Images) -> Tokens:
        tokens = self.tokens[...]
        return jnp.broadcast_to(tokens, (images.shape[0], *tokens.shape))  # [B, N, D]


class ImageTagger(nnx.Module):
    """RAM's image encoder and tagging head: picture in [-1, 1] -> logits of the tags."""

    def __init__(self, image_encoder: RAMEncoder, tagger: Tagger):
        self.image_encoder = image_encoder
        self.tagger = tagger

    def __call__(self, image: Image) -> Float32[Array, "b n"]:
        return self.tagger(self.image_encoder(image))


@partial(jax.jit, static_argnums=0)
def _forward(graphdef: nnx.GraphDef, state: nnx.State, x: Array | np.ndarray) -> Array:
    """Run a module on an array."""
    # The weights are arguments: closed over, they would become constants of the program.
    return nnx.merge(graphdef, state)(x)


class TextEncoder:
    """Texts -> tokens (B, 77, D) of CLIP's text encoder."""

    def __init__(self, tokenize: Tokenize, clip: CLIPTextModel) -> None:
        self._tokenize = tokenize
        self._clip = partial(_forward, *nnx.split(clip))

    def __call__(self, texts: Sequence[str]) -> Tokens:
        return self._clip(self._tokenize(texts))


class TagFinder:
    """Pictures -> names of what is in each: RAM's tags, without a text encoder."""

    def __init__(
        self,
        image_tagger: ImageTagger,
        names: Sequence[str],
        thresholds: Float32[np.ndarray, " n"],
    ) -> None:
        """`names` and `thresholds` are RAM's lists."""
        self.input_size = image_tagger.image_encoder.input_size  # pixels, of the square it sees
        # The module becomes a function of arrays once, here, so that a call splits nothing.
        self._logits = partial(_forward, *nnx.split(image_tagger))
        self._names, self._thresholds = tuple(names), thresholds

    def __call__(self, images: Images) -> list[list[str]]:
        """Names for each picture in [-1, 1], in the list's order."""
        # Strings begin here, so nothing of this is inside a compiled program.
        return select_tags(np.asarray(self._logits(images)), self._thresholds, self._names)


class TagPrompter:
    """Pictures -> tags -> text -> tokens, on the host between two compiled programs.

    A model is trained on tags alone and used with a user's prompt after them (`bare_text` and
    `tag_text`), both as OSEDiff has it: this one makes the text of use, its `bare` of training.
    """

    def __init__(
        self,
        image_tagger: ImageTagger,
        names: Sequence[str],
        thresholds: Float32[np.ndarray, " n"],
        encode: TextEncoder,
        user_prompt: str = "",
    ) -> None:
        """`names` and `thresholds` are RAM's lists; `user_prompt` is for `tag_text`, in use."""
        self._find = TagFinder(image_tagger, names, thresholds)
        self.input_size = self._find.input_size  # pixels, of the square it sees
        self._encode = encode
        self._text: Callable[[Sequence[str]], str] = partial(tag_text, user_prompt=user_prompt)

    @property
    def bare(self) -> "TagPrompter":
        """The same prompter as a model is prompted in its training; the networks are shared."""
        # A shallow copy: weights and compiled programs are the same objects.
        other = copy(self)
        other._text = bare_text
        return other

    def tags(self, images: Images) -> list[list[str]]:
        """Names of what is in each picture, in the list's order."""
        return self._find(images)

    def caption(self, pixels: Pixels) -> str:
        """The text of training, `bare_text`, of one picture (H, W, 3) as it is in its file."""
        # One size, so that one program is compiled for pictures of all sizes.
        return bare_text(self.tags(squash(pixels, self.input_size)[None])[0])

    def __call__(self, images: Images) -> Tokens:
        """Tokens (B, 77, D) of pictures in [-1, 1]."""
        return self._encode([self._text(tags) for tags in self.tags(images)])


def bare_text(tags: Sequence[str]) -> str:
    """OSEDiff's prompt in training: the tags with commas between them, and nothing else."""
    return ", ".join(tags)


def tag_text(tags: Sequence[str], user_prompt: str = "") -> str:
    """OSEDiff's prompt in its test: a comma after the tags, and after an empty user prompt too."""
    return f"{bare_text(tags)}, {user_prompt},"


def null_prompter(encode: TextEncoder) -> FixedPrompter:
    """Table 4's null prompt: a single space."""
    return FixedPrompter(encode([" "])[0])


def load_prompt(path: str | Path, width: int | None) -> FixedPrompter:
    """Prompter of a .npy file (N, width), of any width if None. Raises ValueError on another."""
    # Never a pickle: the file may be anybody's.
    try:
        tokens = np.load(path, allow_pickle=False)
    except EOFError as error:
        raise ValueError(f"{path}: an empty file") from error
    if not isinstance(tokens, np.ndarray):
        raise ValueError(f"{path}: an archive, not an array")
    # The shape is checked here, since the U-Net's attention would fail far from the cause.
    if tokens.ndim != 2 or width not in (None, tokens.shape[1]) or not len(tokens):
        wanted = "width" if width is None else width
        raise ValueError(f"{path}: tokens must be (N, {wanted}), these are {tokens.shape}")
    if tokens.dtype.kind != "f" or not np.isfinite(tokens).all():
        raise ValueError(f"{path}: tokens must be finite floating-point numbers")
    return FixedPrompter(jnp.asarray(tokens, jnp.float32))
