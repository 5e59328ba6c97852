"""Pure mathematics of Ra-DPO: risk measures, preference losses and the output heads fused with them (torch only)."""
