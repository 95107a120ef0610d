"""From image folders to batches: class tables, shards, a deterministic order and two readers that share it."""
