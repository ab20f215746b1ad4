"""Routing: train a router on scored answers, judge it, and send every prompt to its teacher."""
