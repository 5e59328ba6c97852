"""What the finished runs of a study say: methods judged by their fronts, with intervals, never at one setting.

runs        a run as arrays, from its summary.json and the artefacts that it names
  -> settings   runs that differ in their training seed only; refusals of runs that cannot be compared
  -> measures   what is measured, fixed before the runs; sums by film, so that drawing again is cheap
  -> intervals  seeds and films drawn again together, the same draws for every setting
  -> compare    a setting beside dpo's front at the same drift or the same mean; tests, corrected by Holm
  -> analyse    all of it: `Study`
  -> show, plots, write   tables, the figure and the files

Every figure is conditional on one reference model and one split of the data: the study draws new training seeds and
new films, never a new reference.
"""
