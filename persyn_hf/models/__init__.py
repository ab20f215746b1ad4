"""One way to a checkpoint: identity, loading, rendering, worker processes."""
