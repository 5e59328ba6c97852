"""Preference pairs: read, check, split, tokenise, and the order in which training sees them.

``sources`` reads rows, ``formats`` turns a row into a pair, ``checks`` drops and counts faulty rows,
``splits`` keeps groups apart; ``prepare`` and ``tokenise`` are the two stages made of these.
``tables`` stores the records of `pipeline.records` and ``order`` is the global batch order.
"""
