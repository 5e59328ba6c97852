"""Production watched: logs in; a comparison log, alarms with a stated false-alarm probability, and alerts out."""
