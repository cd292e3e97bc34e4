"""Which crops are the set: Eq. 1's ranking, thresholds, reviews, copies and splits.

manifest      every image and every candidate, kept or with its reason
pool          all scored crops, which are selected from
decisions     what becomes of them
ranking       by Eq. 1, the top third and thresholds
reviews       by hand
barred        sets that must have no photograph in common with this one
split         groups of one photograph, and their splits
sampling      the draw of a test set
select_job    the job that puts these together
"""
