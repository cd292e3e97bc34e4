"""HQ-ACF: from annotated photographs to a packed set of high-quality crops of people.

This is the data pipeline of section 3.1 of the OSDHuman paper, by which its dataset PERSONA was
made. It meets the trainer in file formats only. The rooms, each of which imports only from those
above it:

    schema config    what the stages hand to each other, and their settings
    readers          label files and folders of pictures to descriptions of pictures
    engine           jobs over shards, which any kill leaves whole
    cropping         pictures to crops
    quality          crops to scores
    selection        scores to a set
    publish          a set to files for training, and to a report
    plan prune       what one output folder is made of, and how dropped crops are taken out of it
    curation         the stages over it
    run forget       the command, and how it takes images out again
    niqe unpack demo further commands: fit NIQE, unpack a split, try everything
"""

import importlib.util

# Said here once, since nearly every module would fail with a message that names no remedy.
if importlib.util.find_spec("pyarrow") is None:
    raise ModuleNotFoundError("curate needs pyarrow: pip install 'osdhuman-jax[curate]'")
