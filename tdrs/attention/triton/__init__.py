"""Attention edits as fused kernels, in Triton. `run` is the execution; only it is called from outside.

    directions.py   one kernel: the directions of the keys, and their sums over chunks
    smallest.py     one kernel: |A|_min
    attend.py       one kernel: logits, the method's edit, softmax, values
    scan.py         one kernel: logits and cosines of one query row, with directions that are kept
    decode.py       two kernels: the rest of attention for one query row
    distance.py     the distance of position ids, and one kernel: d_max of each row
    norm.py         the mean or the largest cosine of a row
    padding.py      where a sample's padding is, which the kernels share
    arithmetic.py   products, reciprocals and logarithms, which the kernels share
    tiles.py        the sizes of the tiles
    run.py          from a call to the output

Nothing outside of this package imports it before a call is executed here, because triton is optional.
"""
