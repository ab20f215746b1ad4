"""Cost of a run: predicted before its first request, and compared with the actual cost afterwards."""
