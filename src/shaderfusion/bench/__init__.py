"""`shaderfusion bench`: the paper's tables (Chen et al. 2023, arXiv 2304.11267) for the device at hand."""
