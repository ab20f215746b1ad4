"""Access to checkpoints: identity, loading, rendering and worker processes."""
