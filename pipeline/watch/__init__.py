"""Production watched: what a version says there is held against its reference and against its own first outputs.

::

    logs.py ──► lines ──► watcher.py ◄── scoring.py (actors: version and reference)
                             │  baseline ─► ranks.py ─► rules.py, thresholds.py ─► detector.py ─► alarms
                             ▼
              state.py + comparison.py: committed together
                             ▼
              telling.py: roll-back, alerts.py ─► webhook.py, metrics.py, summary.py ─► pipeline.report.watch

``job.py`` runs the loop; ``simulation.py`` tries the promise about false alarms.
"""
