"""Prompts of training that are not learnt: the rows of Table 4 beside the paper's own.

HFIE's tokens are made inside the compiled step. Tags, the null prompt and a prompt of a file are
made before it, from the pictures of a batch, by the extractor in the base model's folder.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from osdhuman_jax.config import Config
from osdhuman_jax.images.codec import to_float
from osdhuman_jax.methods.prompts import Prompter, TagPrompter
from osdhuman_jax.weights import load_prompter, load_text_encoder


class Prompts:
    """Tokens of a batch's pictures, made outside the compiled step; nothing where HFIE makes them.

    Pictures are uint8 (B, H, W, 3), tokens float32 (B, N, D) on the host.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        """Raises WeightsError where the folder lacks what `prompt.kind` needs."""
        kind = config.prompt.kind if config.run.kind == "restorer" else "hfie"
        # A cleaner has no prompts at all, and its folder no extractor; no more has a parser.
        alone, precision = config.run.kind in ("cleaner", "parts"), config.run.precision
        self._extract = None if alone else load_prompter(folder, kind, precision=precision)
        # Of captions where there are any: without them every text is empty, which the step knows.
        text = config.prompt.kind == "text"
        self._encode = load_text_encoder(folder, precision=precision) if text else None

    def __call__(self, batch: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
        """{"prompt": tokens} of the pictures `source`, or of captions, for a step; {} for HFIE."""
        if self._encode is not None:
            return self._described(batch)
        # Trained on bare tags, and used with a user's prompt after them: both as OSEDiff has it.
        extract = self._extract
        extract = extract.bare if isinstance(extract, TagPrompter) else extract
        return self._by(extract, batch, source)

    def in_use(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tokens as a trained model gets them: of the LQ, with tags in the text of `tag_text`."""
        if self._encode is not None:
            return self._described(batch)
        return self._by(self._extract, batch, "lq")

    def _described(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tokens of the captions of a batch, if it has any."""
        if self._encode is None or "caption" not in batch:
            return {}
        with jax.transfer_guard("allow"):
            return {"prompt": np.asarray(self._encode(batch["caption"].tolist()))}

    @staticmethod
    def _by(
        extract: Prompter | None, batch: Mapping[str, np.ndarray], source: str
    ) -> dict[str, np.ndarray]:
        if extract is None:
            return {}
        # Tags pass through the host as text, between two programs: the loop's guard against hidden
        # transfers would refuse what is meant here.
        with jax.transfer_guard("allow"):
            return {"prompt": np.asarray(extract(to_float(batch[source])))}
