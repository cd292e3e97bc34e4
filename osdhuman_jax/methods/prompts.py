"""Prompt extractors (section 3.3 and Table 4): image -> cross-attention tokens.

    HFIE   p = MHA(Q, E(I), E(I)) with learnable queries Q and RAM's frozen embeddings E (Eq. 5)
    tags   RAM's or DAPE's tags as text through CLIP; which of the two is a matter of weights
    fixed  the same tokens for every image: a single space through CLIP ("null"), or a file

The first and the last are modules and live in a Restorer. Tags are strings, which no compiled
program holds: `TagPrompter` runs outside, and the Restorer is given its tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Int32

from osdhuman_jax.disk import staged_file
from osdhuman_jax.networks.attention import attend, join_heads, split_heads
from osdhuman_jax.networks.clip import CLIPTextModel
from osdhuman_jax.networks.swin import RAMEncoder
from osdhuman_jax.networks.tagger import Tagger, select_tags
from osdhuman_jax.networks.types import Image, Tokens

Tokenize = Callable[[Sequence[str]], Int32[np.ndarray, "b t"]]


class HFIE(nnx.Module):
    """Multi-head attention of learnable queries to image embeddings (B, N, kv_dim)."""

    def __init__(
        self,
        *,
        num_queries: int,
        dim: int,
        kv_dim: int,
        num_heads: int,
        query_init_std: float,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: dict[str, Any] = {
            "kernel_init": jax.nn.initializers.xavier_uniform(),
            "dtype": dtype,
            "rngs": rngs,
        }
        query = jax.random.normal(rngs.params(), (num_queries, dim), jnp.float32)
        self.num_heads = num_heads
        self.query = nnx.Param(query_init_std * query)
        self.q_proj = nnx.Linear(dim, dim, **kw)
        self.k_proj = nnx.Linear(kv_dim, dim, **kw)
        self.v_proj = nnx.Linear(kv_dim, dim, **kw)
        self.out_proj = nnx.Linear(dim, dim, **kw)

    def __call__(self, embeddings: Float[Array, "b m e"]) -> Tokens:
        """Tokens (B, num_queries, dim), Eq. 5."""
        query = jnp.broadcast_to(self.query[...], (embeddings.shape[0], *self.query.shape))
        q, k, v = (
            split_heads(y, self.num_heads)
            for y in (self.q_proj(query), self.k_proj(embeddings), self.v_proj(embeddings))
        )
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

    def __call__(self, image: Image) -> Tokens:
        return self.hfie(self.image_encoder(image))


class FixedPrompter(nnx.Module):
    """The same tokens (N, D) whatever the picture."""

    input_size = 1  # nothing is looked at

    def __init__(self, tokens: Float[Array, "n d"]):
        self.tokens = nnx.Param(tokens)

    def __call__(self, image: Image | Float32[np.ndarray, "b h w 3"]) -> Tokens:
        return jnp.broadcast_to(self.tokens[...], (image.shape[0], *self.tokens.shape))


class ImageTagger(nnx.Module):
    """RAM's image encoder and tagging head: picture in [-1, 1] -> logits of the tags."""

    def __init__(self, image_encoder: RAMEncoder, tagger: Tagger):
        self.image_encoder = image_encoder
        self.tagger = tagger

    def __call__(self, image: Image) -> Float32[Array, "b n"]:
        return self.tagger(self.image_encoder(image))


@partial(jax.jit, static_argnums=0)
def _forward(graphdef: nnx.GraphDef, state: nnx.State, x: Array) -> Array:
    """A module with its weights as arguments: closed over, they would become constants."""
    return nnx.merge(graphdef, state)(x)


class TextEncoder:
    """Texts -> tokens (B, 77, D) of CLIP's text encoder."""

    def __init__(self, tokenize: Tokenize, clip: CLIPTextModel) -> None:
        self._tokenize = tokenize
        self._clip = partial(_forward, *nnx.split(clip))

    def __call__(self, texts: Sequence[str]) -> Tokens:
        return self._clip(self._tokenize(texts))


class TagPrompter:
    """Pictures -> tags -> text -> tokens, on the host between two compiled programs."""

    def __init__(
        self,
        image_tagger: ImageTagger,
        names: Sequence[str],
        thresholds: Float32[np.ndarray, " n"],
        encode: TextEncoder,
        user_prompt: str = "",
    ) -> None:
        """`names` and `thresholds` are RAM's lists; `user_prompt` is for `tag_text`, in use."""
        self.input_size = image_tagger.image_encoder.input_size  # pixels, of the square it sees
        self._logits = partial(_forward, *nnx.split(image_tagger))
        self._names, self._thresholds = tuple(names), thresholds
        self._encode, self._user_prompt = encode, user_prompt

    def tags(self, images: Float32[np.ndarray, "b h w 3"]) -> list[list[str]]:
        """Names of what is in each picture, in the list's order."""
        return select_tags(np.asarray(self._logits(images)), self._thresholds, self._names)

    def __call__(self, images: Float32[np.ndarray, "b h w 3"]) -> Tokens:
        """Tokens (B, 77, D) of pictures in [-1, 1], as a trained model is prompted."""
        return self._encode([tag_text(tags, self._user_prompt) for tags in self.tags(images)])

    def bare(self, images: Float32[np.ndarray, "b h w 3"]) -> Tokens:
        """Tokens (B, 77, D) of pictures in [-1, 1], as a model is prompted in its training."""
        return self._encode([bare_text(tags) for tags in self.tags(images)])


def bare_text(tags: Sequence[str]) -> str:
    """OSEDiff's prompt in training: the tags with commas between them, and nothing else."""
    return ", ".join(tags)


def tag_text(tags: Sequence[str], user_prompt: str = "") -> str:
    """OSEDiff's prompt in its test: a comma after the tags, and after an empty user prompt too."""
    return f"{bare_text(tags)}, {user_prompt},"


def null_prompter(encode: TextEncoder) -> FixedPrompter:
    """Table 4's null prompt: a single space."""
    return FixedPrompter(encode([" "])[0])


def save_prompt(path: str | Path, tokens: Float[Array, "n d"]) -> None:
    """Write tokens as a float32 .npy file, for use where CLIP is not at hand."""
    with staged_file(path) as file:  # numpy would append .npy to another name
        np.save(file, np.asarray(tokens, np.float32))


def load_prompt(path: str | Path, width: int | None) -> FixedPrompter:
    """Prompter of a .npy file (N, width), of any width if None. Raises ValueError on another."""
    try:
        tokens = np.load(path, allow_pickle=False)
    except EOFError as error:
        raise ValueError(f"{path}: an empty file") from error
    if not isinstance(tokens, np.ndarray):
        raise ValueError(f"{path}: an archive, not an array")
    if tokens.ndim != 2 or width not in (None, tokens.shape[1]) or not len(tokens):
        wanted = "width" if width is None else width
        raise ValueError(f"{path}: tokens must be (N, {wanted}), these are {tokens.shape}")
    if tokens.dtype.kind != "f" or not np.isfinite(tokens).all():
        raise ValueError(f"{path}: tokens must be finite floating-point numbers")
    return FixedPrompter(jnp.asarray(tokens, jnp.float32))
