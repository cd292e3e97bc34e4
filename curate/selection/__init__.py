"""Which crops are the set: Eq. 1's ranking, thresholds, reviews, copies and splits.

manifest    every image and every candidate, kept or with its reason
pool        all scored crops, which are selected from
barred      sets that must have no photograph in common with this one
split       groups of one photograph, and their splits
select      the job that decides
"""
