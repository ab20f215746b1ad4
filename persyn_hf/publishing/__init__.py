"""Publishing: the personalised dataset and the router, with their cards and figures, on disk and on the Hub."""
