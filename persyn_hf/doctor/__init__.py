"""Checks an installation, and a configuration against it, before anything is spent."""
