"""File formats that pictures are written in, and their limits.

Constants alone, so that a command line can name them without loading what encodes pictures.
"""

SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}  # of a file, by its format
# Pixels of the longest side that a file can hold (PNG: 31 bits; JPEG: libjpeg's; WebP: 14 bits).
LONGEST = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}
LOSSLESS = 100  # quality at which WebP keeps every pixel
