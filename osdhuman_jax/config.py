"""Typed configuration. Every default is the paper's value (OSDHuman, ICML 2025) or, where the paper
is silent, OSEDiff's, which it follows; no experiment's values stand here, they are in `configs/`.

The sizes of the networks are in `networks/configs.py`; what is here says how they are put together,
trained and used. `to_dict` and `from_dict` are how both go to JSON and come back; what comes from a
model folder is also held against the ranges at the end.

The module is long because all settings are read side by side.
"""

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin

from osdhuman_jax.networks.configs import (
    DualPromptConfig,
    HFIEConfig,
    PartParserConfig,
    RRDBNetConfig,
    SwinConfig,
    SwinIRConfig,
    UNetConfig,
    VAEConfig,
    added,
)

T = TypeVar("T")
Number = int | float  # which runtime checks of types tell apart
Json = dict[str, Any]  # a table of settings as the json module reads it


@dataclass
class ModelConfig:
    """One restorer: VAE, U-Net and prompt extractor. The defaults are the paper's."""

    vae: VAEConfig = field(default_factory=VAEConfig.sd21)
    unet: UNetConfig = field(default_factory=UNetConfig.sd21)
    swin: SwinConfig = field(default_factory=SwinConfig.ram)
    hfie: HFIEConfig = field(default_factory=HFIEConfig)
    timestep: int = 999  # T_L of Eq. 2; HAODiff: 199
    dual: DualPromptConfig | None = added(None)  # HAODiff's two prompts, in RAM's and HFIE's place
    text: bool = added(False)  # prompted by texts alone (DiffBody): neither RAM nor HFIE


@dataclass
class CleanerConfig:
    """The network of a run of kind "cleaner" (DiffBody's Eq. 2): one of the two."""

    swinir: SwinIRConfig | None = None  # the paper's
    rrdbnet: RRDBNetConfig | None = None  # Real-ESRGAN's

    @property
    def sizes(self) -> SwinIRConfig | RRDBNetConfig | None:
        """Those of the one that is given."""
        return self.swinir or self.rrdbnet


@dataclass
class ControlConfig:
    """The conditions of a run of kind "control" (DiffBody's Eq. 3), and how often each is hidden.

    The paper tells of no hiding. A network that was always told everything is lost where nobody
    is found, where joints are not seen or nothing is said, all of which happen in use.
    """

    pose: bool = True  # paper; its Fig. 7 goes without
    attention: bool = True  # paper, likewise
    drop_joints: float = 0.1  # of the joints, each by itself: estimators miss some
    drop_pose: float = 0.1  # of the pictures' poses: in heavily degraded ones nobody is found
    drop_attention: float = 0.1  # of the pictures' attention maps, likewise
    drop_text: float = 0.2  # of the captions, for none at all (DiffBIR v2.1), which guidance needs


@dataclass
class SampleConfig:
    """How a model of many steps (DiffBody) is sampled; DiffBIR's where the paper is silent."""

    steps: int = 50  # paper
    sampler: str = "ddpm"  # paper; or "ddim", which begins with the restored picture's latent
    cfg: float = 4.0  # scale by which a text is followed
    negative: str = "low quality, blurry, low-resolution, noisy, unsharp, weird textures"
    control_scale: float = 1.0  # of what ControlNet adds
    guidance: float = 0.0  # scale s of Eq. 6, by parts of the body; 0 = off


@dataclass
class UseConfig:
    """How a model is best used: kept in its folder, and taken where nothing else is asked for."""

    color_fix: str = "none"  # "adain" or "wavelet": the restored picture takes the input's colours
    blend: float = 1.0  # of the restored picture in the result, the rest being the input
    work_side: int = 0  # pixels; a picture whose shorter side has fewer is restored enlarged to it
    sides: tuple[int, int] = added((0, 0))  # pixels; shorter sides that it is made for, 0 = any
    sample: SampleConfig | None = added(None)  # of DiffBody
    strength_of: str = added("")  # what strength is: of STRENGTHS, or "" for the method's own
    keep_faces: float = added(0.0)  # least similarity of a face that is not given back; 0 = off


@dataclass
class LoRAConfig:
    """Low-rank adapters of the generator (section 4.1)."""

    rank: int = 4  # paper
    alpha: float = 8.0  # peft's default, as in OSEDiff: scale = alpha / rank = 2
    vae_encoder: bool = True  # paper: adapters in the VAE's encoder
    unet: bool = True  # paper: adapters in the U-Net
    train_conv_in: bool = False  # paper: LoRA only; OSEDiff trains the U-Net's conv_in too


@dataclass
class PromptConfig:
    """Where the U-Net's cross-attention tokens come from (Table 4)."""

    kind: str = "hfie"  # paper; or dual (HAODiff), ram, dape (tags), null (a space), fixed (a file)
    # Tags are trained on bare, "man, hat", and used in "man, hat, ,", both as OSEDiff has it.
    source: str = "lq"  # paper: which picture is described in training; OSEDiff: "hq"


@dataclass
class LossConfig:
    """Weights of Eqs. 4-7 and of the two stages that make a small base model."""

    mse: float = 1.0  # paper; on images in [-1, 1]
    lpips: float = 2.0  # paper
    vsd: float = 1.0  # paper
    cfg_vsd: float = 1.0  # guidance of the frozen regularizer; paper, Eq. 6: none; OSEDiff: 7.5
    negative_prompt: str = ""  # what `cfg_vsd` guides away from; needs CLIP in the model folder
    vsd_timesteps: tuple[int, int] = (20, 980)  # paper; upper end excluded
    reg_timesteps: tuple[int, int] = (0, 1000)  # OSEDiff; upper end excluded
    reg_updates: int = 1  # regularizer updates per generator update; OSEDiff: 1
    reg_lora_scope: str = "all"  # "mid" = what OSEDiff's released trainer really updates
    kl: float = 1e-6  # autoencoder stage only (LDM's value)
    structure: float = 0.0  # of 1 - SSIM; in LPIPS' place where VGG's weights are not at hand
    chroma: float = 0.0  # autoencoder stage only: weight of the error of colour differences
    l1: float = added(0.0)  # of the mean absolute error, which blurs less than the squared one
    gradient: float = added(0.0)  # of the mean absolute error of the differences of neighbours
    colour: float = added(0.0)  # of the squared error, from the INPUT, of the lowest frequencies
    adversarial: float = added(0.0)  # of a critic's judgement; with it a critic is trained beside
    features: float = added(0.0)  # of the mean absolute error of the critic's features
    ea: float = added(0.0)  # of HAODiff's edge-aware DISTS; needs the parts lpips and dists
    gan: float = added(0.0)  # of HAODiff's critic of latents; with it one is trained beside
    attention: float = added(1.0)  # DiffBody's Eq. 4: of I_attn in (1 + I_attn)^2; 0 = not weighted
    dice: float = added(0.0)  # dual-prompt stage only: of the mask of what moved; HAODiff: 0.02
    critic_width: int = added(64)  # channels of the critic at a quarter of the side
    critic_noise: float = added(0.02)  # of [-1, 1]: a critic is held to one answer within it
    critic_penalty: float = added(100.0)  # of the square of how far two such answers differ


@dataclass
class OptimConfig:
    """AdamW of generator and regularizer (section 4.1; the rest as OSEDiff)."""

    learning_rate: float = 5e-5  # paper
    b1: float = 0.9  # AdamW's decay of the mean gradient; OSEDiff
    b2: float = 0.999  # AdamW's decay of its square; OSEDiff
    eps: float = 1e-8  # OSEDiff
    weight_decay: float = 1e-2  # OSEDiff
    clip_norm: float = 1.0  # largest norm of a gradient; OSEDiff
    warmup_steps: int = 0  # steps with a linearly growing rate; OSEDiff: none
    schedule: str = "constant"  # or "cosine", down to zero at the last step
    accumulate: int = 1  # parts a batch is cut into: less memory, same step but for dice
    max_nonfinite: int = 10  # steps in a row without a finite loss and gradient; then the run stops
    ema: float = 0.0  # decay of an averaged copy, validated and exported; paper: none


@dataclass
class DegradationConfig:
    """Real-ESRGAN second-order degradation: the values of its x4plus yml, as in OSEDiff."""

    scale: int = 4  # HQ side / information side of the LQ
    blur_kernel_sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)  # pixels, drawn evenly
    kernel_probs: tuple[float, ...] = (
        0.45,
        0.25,
        0.12,
        0.03,
        0.12,
        0.03,
    )  # of KERNELS
    sinc_prob: float = 0.1  # of a sinc filter in a blur's place
    blur_sigma: tuple[float, float] = (0.2, 3.0)  # pixels, first blur
    blur_sigma2: tuple[float, float] = (0.2, 1.5)  # pixels, second blur
    betag_range: tuple[float, float] = (0.5, 4.0)  # shape of generalized Gaussians
    betap_range: tuple[float, float] = (1.0, 2.0)  # shape of plateaus
    second_blur_prob: float = 0.8  # of a second blur at all
    final_sinc_prob: float = 0.8  # of a sinc filter at the end
    resize_probs: tuple[float, float, float] = (0.2, 0.7, 0.1)  # up, down, keep
    resize_range: tuple[float, float] = (0.15, 1.5)  # factor, first resize
    resize_probs2: tuple[float, float, float] = (0.3, 0.4, 0.3)  # up, down, keep
    resize_range2: tuple[float, float] = (0.3, 1.2)  # factor, second resize
    gaussian_noise_prob: float = 0.5  # else Poisson noise
    noise_range: tuple[float, float] = (1.0, 30.0)  # sigma, of 255
    noise_range2: tuple[float, float] = (1.0, 25.0)  # sigma, of 255
    poisson_scale_range: tuple[float, float] = (0.05, 3.0)  # times the natural noise
    poisson_scale_range2: tuple[float, float] = (0.05, 2.5)  # times the natural noise
    gray_noise_prob: float = 0.4  # of noise alike in all channels
    jpeg_range: tuple[int, int] = (30, 95)  # integer quality, both ends included
    usm: bool = False  # Real-ESRGAN sharpens the HQ; OSEDiff does not
    # Shares of the first order's states; motion blur needs data.parts.
    first_order: tuple[float, float, float] = added((0.0, 0.0, 1.0))  # none, motion, as above


@dataclass
class DataConfig:
    """Where HQ pictures come from and what becomes of them."""

    sources: tuple[str, ...] = ()  # folders of images, or ArrayRecord files or folders of them
    crop: int = 512  # pixels, side of a square, or width beside `crop_height`
    resize_short: int = 0  # scale the shorter side to this first (area filter); 0 = leave
    flip: bool = True  # mirror half of the pictures
    degrade: bool = True  # make the LQ; the autoencoder and the prior may do without
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    batch_size: int = 16  # global; paper
    workers: int = 4  # decode and degrade processes; 0 = in the main process
    labelled: tuple[str, ...] = added(())  # folders of hq/, lq/ and a teacher's output, teacher/
    labelled_share: float = added(0.0)  # of the samples that come from these folders
    teacher_share: float = added(1.0)  # of the teacher's output in their target, the rest is LQ
    kinds: tuple[float, ...] = added((1.0, 0.0, 0.0, 0.0, 0.0))  # shares of degrade.KINDS
    gray: float = added(0.0)  # share of the pictures that lose their colour before all else
    parts: tuple[str, ...] = added(())  # folders of label maps, one for each source ("" = none)
    mask: bool = added(False)  # give the training what motion blurred, HAODiff's M_HMB
    seed: int = 123  # of order, crops and degradations
    crop_height: int = added(0)  # pixels; 0 = a square of `crop`
    poses: tuple[str, ...] = added(())  # folders by `osdhuman poses`, one for each source
    captions: tuple[str, ...] = added(())  # files of captions, likewise; '' = the records' own

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a crop, in pixels."""
        return self.crop_height or self.crop, self.crop


@dataclass
class MeshConfig:
    """Devices by axis; -1 takes all that are left."""

    data: int = -1  # parts of the batch, in all slices of TPUs
    fsdp: int = 1  # parts of the frozen weights


@dataclass
class RunConfig:
    """What one `train.py` does."""

    kind: str = "restorer"  # or another of OBJECTIVES, such as "vae", "dpg", "cleaner", "control"
    train: str = added("lora")  # paper; or "all": every weight of a small restorer
    init: str = ""  # model folder to start from; empty = random weights from the seed
    cleaner: str = added("")  # folder of the cleaner of a control run; empty = the part of `init`
    steps: int = 35_000  # paper
    seed: int = 123  # of weights and of what a step draws
    precision: str = "bf16"  # compute of the frozen networks; or "fp32"
    latent: str = "sample"  # OSEDiff trains on the sampled posterior; or "mode"
    remat: str = "products"  # or "none", "blocks": what the backward pass keeps, see remat.py
    log_every: int = 50  # steps
    checkpoint_every: int = 500  # steps
    keep: int = 3  # newest checkpoints; the best one is kept besides
    best: str = "val_psnr_y"  # or val_ssim_y, val_lpips; val_loss of kinds control and parts
    sample_every: int = 500  # sample grid and validation; 0 = never
    eval_sources: tuple[str, ...] = ()  # HQ pictures of the fixed validation set
    eval_images: int = 16  # how many, the first ones of them
    eval_crop: int = 512  # pixels, as data.crop
    eval_height: int = added(0)  # pixels, as data.crop_height
    eval_poses: tuple[str, ...] = added(())  # as data.poses, for eval_sources
    eval_captions: tuple[str, ...] = added(())  # as data.captions, likewise
    eval_steps: int = added(10)  # of DDIM, by which a control run's validation samples


@dataclass
class Config:
    """An experiment."""

    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    use: UseConfig = field(default_factory=UseConfig, metadata={"added": True})
    cleaner: CleanerConfig = field(default_factory=CleanerConfig, metadata={"added": True})
    control: ControlConfig = field(default_factory=ControlConfig, metadata={"added": True})
    parser: PartParserConfig = field(
        default_factory=PartParserConfig.five, metadata={"added": True}
    )
    run: RunConfig = field(default_factory=RunConfig)


class ConfigError(ValueError):
    """A value that contradicts another or that no code path serves."""


def to_dict(config: object) -> Json:
    """Plain dict of a config dataclass, tuples as lists: what JSON gives back."""
    # Field by field, so that JSON has the order of the source.
    fields = dataclasses.fields(config)  # type: ignore[arg-type]
    return {f.name: _plain(getattr(config, f.name)) for f in fields}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def check_types(config: object, name: str = "") -> None:
    """Raise ConfigError where a field's value is not of its type; whole numbers pass for floats."""
    for field_ in dataclasses.fields(config):  # type: ignore[arg-type]
        value, full = getattr(config, field_.name), f"{name}.{field_.name}" if name else field_.name
        if dataclasses.is_dataclass(value):
            check_types(value, full)
        elif not _is_of(value, field_.type):
            kind = getattr(field_.type, "__name__", "") if not get_args(field_.type) else ""
            raise ConfigError(f"{full}: {value!r:.60} is no {kind or field_.type}")


def _is_of(value: object, kind: object) -> bool:
    """Whether a value is of the type of a field."""
    args = get_args(kind)
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple | list):
            return False
        # `tuple[float, ...]` has any length, all others one.
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if args:
        return any(_is_of(value, arg) for arg in args)
    # True is a number to Python, and none to a person.
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, (int, float) if kind is float else kind)  # type: ignore[arg-type]


def from_dict(cls: type[T], values: object) -> T:
    """Inverse of `to_dict`. Raises ConfigError on an unknown, missing or mistyped field."""
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__}: not a table of fields ({values!r})")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    # A setting that nobody knows is a typing error, or of a later version.
    if unknown := sorted(set(values) - set(fields)):
        raise ConfigError(f"{cls.__name__}: unknown field(s) {', '.join(unknown)}")
    # Folders of earlier versions lack what was added since, which has its default then.
    required = {name for name, f in fields.items() if not f.metadata.get("added")}
    if missing := sorted(required - set(values)):
        raise ConfigError(f"{cls.__name__}: missing field(s) {', '.join(missing)}")

    def typed(value: object, kind: object) -> object:
        # Of a table that may be absent, `kind` is a union with None.
        options = get_args(kind) or (kind,)
        if value is None and type(None) in options:
            return None
        for option in options:
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                return from_dict(option, value)
        return tuple(value) if isinstance(value, list) else value

    made: dict[str, object] = {}
    for name, value in values.items():
        kind = fields[name].type
        # A table proves itself while it is made.
        made[name] = typed(value, kind)
        if not _is_of(made[name], kind):
            raise ConfigError(f"{cls.__name__}: {name} is {value!r:.40}, of another type")
    return cls(**made)


# What a model folder's settings may be, by their names: words, and least and greatest numbers. All
# numbers that are not here are sizes, which are above 0.
COLOR_FIXES = ("none", "adain", "wavelet")
SAMPLERS = ("ddpm", "ddim")
STRENGTHS = ("blend", "guidance", "control_scale")
WORDS = {"color_fix": COLOR_FIXES, "sampler": SAMPLERS, "strength_of": ("", *STRENGTHS)}
TIMESTEPS = 1000  # of the schedule that the networks know
RANGES = {
    "timestep": (0, TIMESTEPS - 1),
    "steps": (1, TIMESTEPS),
    "blend": (0, 1),
    "keep_faces": (0, 1),
} | dict.fromkeys(
    # What may also be 0, which mostly turns something off.
    (
        *("work_side", "sides", "cfg", "control_scale", "guidance", "alpha"),
        *("query_init_std", "skip_branch", "plan", "num_feat"),
    ),
    (0, sys.float_info.max),
)


def read_folder_table(cls: type[T], values: object, name: str) -> T:
    """A table of a model folder's config.json, which has the `name` there.

    Raises ConfigError as `from_dict` does, and on values with which nothing can be restored.
    """
    made = from_dict(cls, values)
    check_values(made, name)
    return made


def check_values(config: object, name: str) -> None:
    """Raise ConfigError where a number is out of its range or a word is none of those known."""
    for field_ in dataclasses.fields(config):  # type: ignore[arg-type]
        value, full = getattr(config, field_.name), f"{name}.{field_.name}"
        if dataclasses.is_dataclass(value):
            check_values(value, full)
        elif field_.name in WORDS and value not in WORDS[field_.name]:
            raise ConfigError(f"{full} is {value!r:.40}, none of {', '.join(WORDS[field_.name])}")
        for number in value if isinstance(value, tuple) else (value,):
            # True and False are numbers to Python, and none to a person.
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check_range(full, number, RANGES.get(field_.name))


def _check_range(name: str, number: Number, bounds: tuple[Number, Number] | None) -> None:
    """Raise ConfigError where a number is not within the bounds or, without any, not above 0."""
    least, most = bounds or (0, sys.float_info.max)
    # NaN is within no bounds, and infinity is beyond the greatest number.
    if least <= number <= most and (bounds or number):
        return
    if isinstance(number, float) and not math.isfinite(number):
        wanted = "no finite number"
    elif not bounds:
        wanted = "not above 0"
    else:
        above = most == sys.float_info.max
        wanted = f"not at least {least}" if above else f"not between {least} and {most}"
    raise ConfigError(f"{name} is {number!r:.40}, {wanted}")


def use_of(meta: Json) -> UseConfig:
    """How the model of a folder's config.json is best used; folders of before 0.2 do not say.

    Raises ConfigError where what is said there is not understood, or cannot be.
    """
    if "use" not in meta:
        return UseConfig()
    use = read_folder_table(UseConfig, meta["use"], "use")
    least, most = use.sides
    if 0 < most < least:
        raise ConfigError(f"use.sides is {list(use.sides)}, whose first is the greater one")
    return use
