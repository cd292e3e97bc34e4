"""How a run ended, as the exit status of its process: scripts and batch systems rely on it.

Constants alone, so that a command line can name them without loading what trains.
"""

# 75 is EX_TEMPFAIL of sysexits.h, after which batch systems run a job again.
DONE, BAD, NOT_FINITE, NOT_SAVED, STOPPED = 0, 2, 3, 4, 75
