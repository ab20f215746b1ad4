"""The last stage: the personalised dataset, its card and plot, the router and its card, on disk and on the Hub."""
