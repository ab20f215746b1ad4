"""One run: its stages, its folder and its report."""
