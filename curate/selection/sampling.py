"""The draw of a test set (profile `test`), whose quality is to be lower than the training set's.

PERSONA-Test has 3,000 crops of Pascal VOC, sampled "under predefined IQA thresholds" that the paper
does not state. Here a crop is fit if it fails some of the training set's thresholds without being a
ruin, and the draw takes equal shares of five quantiles of quality.
"""

from curate.config import CurateConfig
from curate.quality import scores, statistics
from curate.schema import Reason
from curate.selection.decisions import Decisions, is_ranked
from curate.selection.pool import Pool
from curate.selection.ranking import thresholds_of
from curate.selection.split import sample_strata

# Bounds of what is fit for a test set, which are this project's. The upper ones are thresholds of
# the training set. The lower ones are far below the lowest mean of a source in the paper's Table 1
# (0.4775 and 60.49), where little of a photograph is left.
CLIPIQA_RANGE = (0.25, 0.65)
MUSIQ_RANGE = (35, 70)
# Thresholds of the training set that a crop has to fail, of four.
FAILED = 2


def fails(pool: Pool, config: CurateConfig, at: int) -> int:
    """How many of the training set's thresholds a crop fails."""
    directions = scores.directions(config.score)
    values = {name: pool.values[name][[at]] for name in directions}
    limits = thresholds_of(config, directions)
    tests = ({name: limit} for name, limit in limits.items())
    return sum(statistics.first_failing(values, test, directions)[0] != "" for test in tests)


def choose_test(pool: Pool, config: CurateConfig, result: Decisions) -> list[int]:
    """Places of the crops that are fit for a test set.

    With the paper's metrics they are those that fail FAILED thresholds and lie in both ranges; with
    metrics that need no weights all ranked ones (the report says so).
    """
    candidates = [at for at, reason in enumerate(result.reasons) if is_ranked(reason)]
    if config.score.iqa == "classic":
        return candidates
    clipiqa, musiq = pool.values["clipiqa"], pool.values["musiq"]
    return [
        at
        for at in candidates
        if CLIPIQA_RANGE[0] <= clipiqa[at] <= CLIPIQA_RANGE[1]
        and MUSIQ_RANGE[0] <= musiq[at] <= MUSIQ_RANGE[1]
        and fails(pool, config, at) >= FAILED
    ]


def keep_fit(pool: Pool, config: CurateConfig, result: Decisions) -> None:
    """Keep exactly the crops that are fit for a test set, in place of the best ones."""
    fit = set(choose_test(pool, config, result))
    for at, reason in enumerate(result.reasons):
        # A crop that was never ranked has a reason that counts for test sets too.
        if is_ranked(reason):
            result.reasons[at] = "" if at in fit else reason or Reason.NOT_SAMPLED


def sample_test(pool: Pool, config: CurateConfig, result: Decisions) -> None:
    """Draw the test set from what is fit for it: equal shares of five quantiles of quality."""
    fit = [at for at, reason in enumerate(result.reasons) if not reason]
    # Without MUSIQ the z of Eq. 1 stands for quality.
    metric = result.z if config.score.iqa == "classic" else pool.values["musiq"]
    names = [pool.crop_ids[at] for at in fit]
    seed = config.split.seed
    drawn = sample_strata([float(metric[at]) for at in fit], names, config.split.test, seed)
    for at in fit:
        if pool.crop_ids[at] in drawn:
            result.splits[at] = "test"
        else:
            result.splits[at], result.reasons[at] = "", Reason.NOT_SAMPLED
