"""How good a crop is: metrics by crop, and Eq. 1 over a whole pool of crops.

classic       metrics that need no weights
learned       the paper's metrics, by the user's weights
scores        both, in groups
score_job     the job that computes a group
statistics    Eq. 1 of the paper, ranks and thresholds
"""
