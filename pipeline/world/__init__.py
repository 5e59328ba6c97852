"""Worlds small enough to know: what preference training does to mean and tail of the reward, without sampling noise.

draw.draw_world      a token tree with a reward for every whole response, a few of them catastrophic and rare
  -> evidence        the preferences: every pair with its probability, or a number of pairs drawn from that law
  -> learning.train  a tabular policy (one vector of logits a state) trained on them with the losses of
                     `pipeline.risk.losses`, at many betas at once
  -> truth.truth_of  its mean, tail, catastrophes and drift by enumeration of every response
  -> fronts          methods compared at equal drift, or at equal gain of the mean, never at one setting
  -> job             the table, the figure and the numbers
"""
