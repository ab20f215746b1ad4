"""Allocation: from scores per prompt to routes for the whole set, under caps, budgets and deadlines."""
