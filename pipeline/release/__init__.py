"""From a judged policy to production and back: gate, registry, audit trail (neither Ray nor DeepSpeed)."""
