"""Re-alignment on a schedule: look, decide by a written policy, act under a lease, and leave a record.

::

    lease ──► look ──► [measure] ──► decide ──► [evaluate production] ──► [align anew] ──► record
              │ rows that are new, alerts,      │ goes back to the         │ gate, register
              │ ages (no Ray)                   │ reference, or stays      │ promote or keep

`policy` decides and is pure. What has to be remembered from one call to the next is in the records (`records`): there
is no other state, and a call that was killed leaves a record that the next one completes.
"""
