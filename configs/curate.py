"""HQ-ACF's profiles as values. The paper gives no thresholds: these are this project's.

    python -m curate.run --source coco=INSTANCES.json,IMAGES --output data/persona --profile default

`default` for a training set; `strict` never enlarges; `paper` follows the paper's text where it
says how; `test` takes people of lower quality for a test set (to be run with --exclude TRAIN);
`diffbody` makes upright crops of 512 x 1024 by the cleaning of DiffBody's pictures.
What to expect of a run, and how long it takes, is in docs/curation.md.
"""

from curate.config import ConfigError, CurateConfig


def get_config(profile: str = "default") -> CurateConfig:
    """Settings of a profile. Raises ConfigError if there is none of that name."""
    config = CurateConfig(profile=profile)
    if profile == "strict":
        config.square.side_min = 512
    elif profile == "paper":
        config.square.side_min = 256  # it used COCO and VOC, whose pictures are small
        config.blur.of = "picture"
        config.blur.at = "native"
        config.blur.crop_min = 0.0
        config.body.gate = True
    elif profile == "test":
        config.square.side_min = 128  # enlarged four times at most: low quality is wanted
        config.box.long_min = 96.0
        config.box.short_min = 32.0
        config.blur.source_min = config.blur.crop_min = 0.0
        config.select.thresholds = True
        config.split.test = 3000
    elif profile == "diffbody":
        config.square.aspect = 2
        # One to three people, of whom the one in the crop takes up a tenth of the picture.
        config.dense.inside_most = 3
        config.box.area_min = 0.1
        # A person decides what stays, by `--review`, and no metric: nothing is ranked away.
        config.select.top = 1.0
        config.select.thresholds = False
        config.split.val = 2000  # its test set, drawn by seed
    elif profile != "default":
        raise ConfigError(f"no profile {profile!r}: default, strict, paper, test, diffbody")
    return config
