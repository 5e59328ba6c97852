"""Risk-aware preference alignment on Ray.

The flow of one run (each arrow is a content-addressed artefact; see `pipeline.align` for the graph itself):

    preference pairs ─► token ids ─► fine-tuned reference ─► reference cache ─► policy ─► evaluation ─► report

* ``config``, ``recipes``, ``cli``   describe a run and refuse what cannot work
* ``artifacts``, ``graph``           store results by content and skip what is done
* ``data``, ``models``               read, check, split and tokenise pairs; find, build and load models
* ``risk``                           the mathematics: measures, losses, fused heads (no Ray, no DeepSpeed)
* ``reference``                      Ray actors host the frozen reference and precompute what the loss needs
* ``training``                       a DeepSpeed ZeRO worker group under Ray Train optimises the policy
* ``evaluation``, ``report``         sample, score, compare with intervals, and explain
* ``align``, ``job``                 the concrete graph, and one run of it
"""
