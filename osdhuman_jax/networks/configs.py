"""Sizes of the networks: a dataclass for each, whose classmethods give the published sizes.

A network takes its config whole, as in `UNet2DConditionModel(UNetConfig.sd21(), rngs=rngs)`, and a
model folder holds its fields in `config.json`. Their names are those of the libraries that
published the weights. This module imports nothing, so that settings are read without JAX.

The four that `ModelConfig` is made of are not frozen: `ml_collections.config_flags` assigns to
their fields, which is how `--config.model.unet.layers_per_block=1` works. Nothing else should.

The module is long because all sizes are read side by side; there is nothing in it but them.
"""

from dataclasses import dataclass, field, replace
from typing import TypeVar

T = TypeVar("T")

# VGG16's 3x3 convolutions by their widths, 0 for a pooling; its last pooling comes after all taps.
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)


def added(default: T) -> T:
    """A field that older model folders lack; in these it has the value `default`."""
    return field(default=default, metadata={"added": True})


@dataclass
class VAEConfig:
    """AutoencoderKL; the names are diffusers'."""

    latent_channels: int  # 4 in Stable Diffusion
    block_out_channels: tuple[int, ...]  # width of each level
    layers_per_block: int  # residual blocks of a level; the decoder has one more
    norm_num_groups: int  # of every group norm
    scaling_factor: float  # latent = scaling_factor * posterior
    mid_block_add_attention: bool  # one head over all of the latent
    stem: int = added(1)  # pixels a side that enter as channels; above 1 it is residual

    @classmethod
    def sd21(cls) -> "VAEConfig":
        """Stable Diffusion's, from vae/config.json of 2.1-base: 83,653,863 parameters."""
        return cls(
            latent_channels=4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            norm_num_groups=32,
            scaling_factor=0.18215,
            mid_block_add_attention=True,
        )

    @property
    def downscale(self) -> int:
        """Side of the image / side of the latent."""
        # Every level halves the size but the last.
        return self.stem * 2 ** (len(self.block_out_channels) - 1)


@dataclass
class UNetConfig:
    """UNet2DConditionModel; the names are diffusers'."""

    in_channels: int  # those of the latent
    block_out_channels: tuple[int, ...]  # width of each level
    down_block_types: tuple[str, ...]  # the up path mirrors it; the middle block always attends
    layers_per_block: int  # residual blocks of a level; the up path has one more
    num_attention_heads: tuple[int, ...]  # of each level; attention_head_dim in diffusers' files
    cross_attention_dim: int  # width of the prompt's tokens
    norm_num_groups: int  # of every group norm

    @classmethod
    def sd21(cls) -> "UNetConfig":
        """Stable Diffusion 2.1-base's, from its unet/config.json: 865,910,724 parameters."""
        # diffusers' file calls the numbers of heads `attention_head_dim`; the heads are 64 wide.
        return cls(
            in_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            layers_per_block=2,
            num_attention_heads=(5, 10, 20, 20),
            cross_attention_dim=1024,
            norm_num_groups=32,
        )

    def attends(self, level: int) -> bool:
        """Whether the blocks of a level have attention to the prompt."""
        return self.down_block_types[level] == "CrossAttnDownBlock2D"


@dataclass(frozen=True)
class ControlNetConfig:
    """DiffBody's ControlNet: a U-Net's encoder that also sees the latents of its conditions.

    The restored picture's latent is always among them; without the two others it is DiffBIR's.
    """

    unet: UNetConfig  # of the U-Net that it controls
    pose: bool  # the latent of the drawn pose is a condition
    attention: bool  # the map of where the person is, one channel, is a condition

    @classmethod
    def sd21(cls) -> "ControlNetConfig":
        """DiffBody's for Stable Diffusion 2.1-base: 363,167,680 parameters."""
        return cls(UNetConfig.sd21(), pose=True, attention=True)

    @classmethod
    def diffbir(cls) -> "ControlNetConfig":
        """DiffBIR's IRControlNet: 363,153,280 parameters."""
        return cls(UNetConfig.sd21(), pose=False, attention=False)

    @property
    def hint_channels(self) -> int:
        """Channels of the conditions, side by side: 9 in DiffBody, 4 in DiffBIR."""
        return self.unet.in_channels * (1 + self.pose) + self.attention

    @property
    def in_channels(self) -> int:
        """Channels of the noised latent and the conditions: 13 in DiffBody, 8 in DiffBIR."""
        return self.unet.in_channels + self.hint_channels


@dataclass
class SwinConfig:
    """Swin Transformer with RAM's `image_proj`; the names are RAM's and the original Swin's."""

    image_size: int  # pixels, side of the square that it sees
    patch_size: int  # pixels
    embed_dim: int  # width of the first level, doubled at each next
    depths: tuple[int, ...]  # blocks of each level
    num_heads: tuple[int, ...]  # of each level
    window_size: int  # side of an attention window, in patches
    mlp_ratio: float  # hidden width / width
    image_proj_dim: int  # width of the embeddings

    @classmethod
    def ram(cls) -> "SwinConfig":
        """Swin-L/384 of ram_swin_large_14m.pth, from RAM's configs/swin/config_swinL_384.json."""
        return cls(
            image_size=384,
            patch_size=4,
            embed_dim=192,
            depths=(2, 2, 18, 2),
            num_heads=(6, 12, 24, 48),
            window_size=12,
            mlp_ratio=4.0,
            image_proj_dim=512,
        )

    @property
    def width(self) -> int:
        """Channels of the last level's features."""
        # Each merging between two levels doubles them.
        return self.embed_dim * 2 ** (len(self.depths) - 1)


@dataclass
class HFIEConfig:
    """High-fidelity image embedder (section 3.3, Eq. 5); the output width is the U-Net's."""

    num_queries: int = 77  # tokens of a prompt; CLIP's length
    num_heads: int = 16  # the paper names none; 16 x 64 is SD 2.1's cross-attention
    query_init_std: float = 1.0  # standard deviation of the learnt queries at the start


@dataclass
class DualPromptConfig:
    """HAODiff's dual-prompt generator: SwinIR with branches, two embedders, and the guidance.

    Sizes are those of its `swinir_kwargs` and `performer_kwargs`. A prompt's width is the U-Net's.
    """

    image_size: int  # pixels, side of the square that it sees
    upscale: int  # pixels of the picture to one of the features: 2 or 4
    embed_dim: int  # width of the features
    depths: tuple[int, ...]  # Swin blocks of each group: first the trunk's, then a branch's
    num_heads: tuple[int, ...]  # of each group
    window_size: int  # side of an attention window, in features
    mlp_ratio: float  # hidden width / width
    ape: bool  # a learnt embedding of places, added to the features
    num_branches: int  # the first is of the positive prompt, all others of the negative
    skip_branch: tuple[int, ...]  # branches that no prompt is made of
    num_layers: int  # of each embedder's Performer
    num_heads_performer: int  # of each of these layers
    dim_head: int  # width of such a head
    num_features: int  # random features of FAVOR+: int(dim_head * ln(dim_head)) by default
    patch_size: int  # side, in features, of what becomes one key of the pooling
    out_tokens: int  # tokens of a prompt; CLIP's length
    num_heads_pool: int  # of the pooling; shapes of weights do not show it
    guidance: float  # scale of classifier-free guidance, in training and in use
    upsamplers: bool = added(False)  # by which branches are trained, and show what they see

    @classmethod
    def haodiff(cls) -> "DualPromptConfig":
        """The embedders' default width; 48,530,672 parameters beside eight random projections.

        Its groups are not published, and what is imported brings its own: a trunk of two groups of
        six blocks, branches of two groups of three.
        """
        return cls(
            image_size=512,
            upscale=4,
            embed_dim=150,
            depths=(6, 6, 3, 3),
            num_heads=(6, 6, 3, 3),
            window_size=8,
            mlp_ratio=2.0,
            ape=True,
            num_branches=3,
            skip_branch=(),
            num_layers=4,
            num_heads_performer=6,
            dim_head=128,
            num_features=621,
            patch_size=8,
            out_tokens=77,
            num_heads_pool=8,
            guidance=3.5,
        )

    @property
    def side(self) -> int:
        """Side of the features' map."""
        return self.image_size // self.upscale

    @property
    def negative_branches(self) -> tuple[int, ...]:
        """Branches whose features, side by side, make the negative prompt."""
        return tuple(b for b in range(1, self.num_branches) if b not in self.skip_branch)


@dataclass(frozen=True)
class CLIPConfig:
    """CLIP's text encoder; the names are transformers'."""

    vocab_size: int
    max_position_embeddings: int  # tokens of a text
    hidden_size: int  # width
    num_hidden_layers: int
    num_attention_heads: int  # of each layer
    intermediate_size: int  # hidden width of the MLPs

    @classmethod
    def sd21(cls) -> "CLIPConfig":
        """Stable Diffusion 2.1's: 23 of OpenCLIP ViT-H's 24 layers, its penultimate output."""
        return cls(
            vocab_size=49408,
            max_position_embeddings=77,
            hidden_size=1024,
            num_hidden_layers=23,
            num_attention_heads=16,
            intermediate_size=4096,
        )


@dataclass(frozen=True)
class TaggerConfig:
    """RAM's tagging head; the image embeddings' width is the Swin's `image_proj_dim`."""

    num_tags: int
    label_dim: int  # width of a tag's embedding
    hidden_size: int  # width
    num_hidden_layers: int
    num_attention_heads: int  # of each layer
    intermediate_size: int  # hidden width of the MLPs

    @classmethod
    def ram(cls) -> "TaggerConfig":
        """RAM's, from its configs/q2l_config.json, with the 4585 tags of its list."""
        return cls(
            num_tags=4585,
            label_dim=512,
            hidden_size=768,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=3072,
        )


@dataclass(frozen=True)
class LPIPSConfig:
    """LPIPS' feature network."""

    # Widths of its 3x3 convolutions in order, 0 for a pooling.
    plan: tuple[int, ...]

    @classmethod
    def vgg16(cls, narrow: int = 1) -> "LPIPSConfig":
        """VGG16 of LPIPS v0.1, or one with as many layers whose widths are a `narrow`-th."""
        return cls(tuple(width // narrow for width in VGG16))


@dataclass(frozen=True)
class DISTSConfig:
    """DISTS' channels: the picture's three, then those of LPIPS' taps."""

    channels: tuple[int, ...]

    @classmethod
    def of(cls, vgg: LPIPSConfig) -> "DISTSConfig":
        """Those of a VGG's plan: 1,475 in all for VGG16."""
        plan = (*vgg.plan, 0)
        widths = [plan[i - 1] for i, width in enumerate(plan) if not width and i and plan[i - 1]]
        return cls((3, *widths))


@dataclass(frozen=True)
class RRDBNetConfig:
    """RRDBNet of ESRGAN and Real-ESRGAN; the names are BasicSR's."""

    num_feat: int  # width of the features
    num_grow_ch: int  # what each convolution of a dense block adds to it
    num_block: int
    scale: int  # 4, 2 or 1: side of the output / side of the input

    @classmethod
    def x4plus(cls) -> "RRDBNetConfig":
        """RealESRGAN_x4plus, ESRGAN and BSRNet: 16,697,987 parameters."""
        return cls(num_feat=64, num_grow_ch=32, num_block=23, scale=4)

    @classmethod
    def x2plus(cls) -> "RRDBNetConfig":
        """RealESRGAN_x2plus: 16,703,171 parameters."""
        return cls(num_feat=64, num_grow_ch=32, num_block=23, scale=2)

    @classmethod
    def x4plus_anime(cls) -> "RRDBNetConfig":
        """RealESRGAN_x4plus_anime_6B: 4,467,779 parameters."""
        return cls(num_feat=64, num_grow_ch=32, num_block=6, scale=4)


@dataclass(frozen=True)
class SwinIRConfig:
    """SwinIR as a restorer of its own; the names are SwinIR's, `unshuffle` is DiffBIR's."""

    embed_dim: int  # width of the body's features
    depths: tuple[int, ...]  # Swin blocks of each group
    num_heads: tuple[int, ...]  # of each group
    window_size: int  # side of an attention window, in features
    mlp_ratio: float  # hidden width / width
    upscale: int  # times that the features grow on their way to the picture
    upsampler: str  # "nearest+conv", "pixelshuffle", "pixelshuffledirect" or "" (adds to its input)
    num_feat: int  # width behind the body; 0 with the last two upsamplers, which have none
    resi_connection: str  # "1conv" or "3conv": what closes a group
    unshuffle: int  # side of the squares of pixels that enter as channels; 1 = each for itself
    img_range: float  # what [0, 1] is multiplied with inside

    @property
    def scale(self) -> int:
        """Side of the output / side of the input."""
        return self.upscale // self.unshuffle

    @classmethod
    def diffbir(cls) -> "SwinIRConfig":
        """DiffBIR's first stage (swinir.yaml), which keeps a picture's size: 15,792,587."""
        return cls(
            embed_dim=180,
            depths=(6,) * 8,
            num_heads=(6,) * 8,
            window_size=8,
            mlp_ratio=2.0,
            upscale=8,
            upsampler="nearest+conv",
            num_feat=64,
            resi_connection="1conv",
            unshuffle=8,
            img_range=1.0,
        )

    @classmethod
    def real_sr_m(cls) -> "SwinIRConfig":
        """SwinIR-M for real pictures, x4: 11,715,559 parameters."""
        made = cls.diffbir()
        return replace(made, depths=(6,) * 6, num_heads=(6,) * 6, upscale=4, unshuffle=1)

    @classmethod
    def real_sr_l(cls) -> "SwinIRConfig":
        """SwinIR-L for real pictures, x4: 28,013,059 parameters."""
        sizes = {"embed_dim": 240, "depths": (6,) * 9, "num_heads": (8,) * 9}
        return replace(cls.real_sr_m(), **sizes, resi_connection="3conv")

    @classmethod
    def classical(cls, upscale: int) -> "SwinIRConfig":
        """SwinIR-M for pictures that were only made smaller; 11,900,199 parameters at x4."""
        return replace(cls.real_sr_m(), upscale=upscale, upsampler="pixelshuffle")

    @classmethod
    def lightweight(cls, upscale: int) -> "SwinIRConfig":
        """The same with fewer and thinner layers; 929,628 parameters at x4."""
        sizes = {"embed_dim": 60, "depths": (6,) * 4, "num_heads": (6,) * 4, "num_feat": 0}
        return replace(cls.classical(upscale), **sizes, upsampler="pixelshuffledirect")

    @classmethod
    def color_dn(cls) -> "SwinIRConfig":
        """SwinIR-M for noise in colour pictures: 11,504,163 parameters."""
        return replace(cls.real_sr_m(), upscale=1, upsampler="", num_feat=0)

    @classmethod
    def color_jpeg(cls) -> "SwinIRConfig":
        """SwinIR-M for JPEG's artefacts in colour pictures, whose blocks are 8 pixels wide."""
        return replace(cls.color_dn(), window_size=7, img_range=255.0)


@dataclass(frozen=True)
class PartParserConfig:
    """The small U-Net that tells the parts of a body apart, ours."""

    num_parts: int  # classes beside the background
    block_out_channels: tuple[int, ...]  # width of each level, the first at a quarter of the side
    norm_num_groups: int  # of every group norm

    @classmethod
    def five(cls) -> "PartParserConfig":
        """DiffBody's parts: head, torso, hands, legs and feet; 88,518 parameters."""
        return cls(num_parts=5, block_out_channels=(16, 24, 32), norm_num_groups=8)
