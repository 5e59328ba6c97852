"""Pure mathematics of Ra-DPO: risk measures, preference losses, output heads fused with them (no Ray, no DeepSpeed)."""
