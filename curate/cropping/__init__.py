"""From the pictures of a source to 512 x 512 crops of people: the index job and the crop job.

decode          a file to upright pixels, or the reason why not
stages          blur, boxes, squares, crowds, suppression: pure functions of pixels and boxes
detect          boxes of people where a source has no labels
fingerprints    by what a photograph is recognised again
job             the crop job, which puts these together
index           the index job, which deals a source's pictures to shards
"""
