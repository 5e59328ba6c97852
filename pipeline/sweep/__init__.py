"""Many alignments of one reference, and the choice between them.

::

    space ──► trials ──► Ray Tune ──► a process for every trial, which runs the alignment job ──► outcomes
                                                                                                    │
    report.html, sweep.json ◄── the chosen ones on the test split ◄── selection by the tolerance ◄──┘
"""
