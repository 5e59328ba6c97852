"""The guard: an OpenAI-compatible service in front of the registry's versions.

::

    request ──► app (HTTP, token, limits) ──► newest: what does the registry say now? ──► choice: which version
                                                                                             │
    answer, naming its version ◄── engine (decoding, one thread) ◄── shelf: the version, loaded and verified
                     └──► log (a share of the answers, for the watch)

Every request asks the registry when it arrives, so that a roll-back holds from the next request on.
"""
