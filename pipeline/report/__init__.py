"""The report a person reads (report.html) and the numbers a machine reads (summary.json)."""
