"""HQ-ACF: from annotated photographs to a packed set of high-quality crops of people.

This is the data pipeline of section 3.1 of the OSDHuman paper. It meets the trainer in file formats
only. The rooms, each of which imports only from those above it:

    schema config    what is handed on, and the settings
    readers          label files and folders of pictures to descriptions of pictures
    engine           jobs over shards, which any kill leaves whole
    cropping         pictures to crops
    quality          crops to scores
    selection        scores to a set
    publish          a set to files for training, and to a report
    plan forget niqe unpack run demo    the commands
"""

import importlib.util

if importlib.util.find_spec("pyarrow") is None:
    raise ModuleNotFoundError("curate needs pyarrow: pip install 'osdhuman-jax[curate]'")
