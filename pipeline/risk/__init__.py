"""Pure mathematics of Ra-DPO: risk measures, the blocked output head, and the preference losses (torch only)."""
