"""What others get to see of a set: packed files for training, and a report.

pack          kept crops in files for training
review        a page for a look by hand
figures       plots and contact sheets
tags          tags of the crops, of a file or by RAM
categories    Figure 7's categories of tags
report        tables and figures
"""
