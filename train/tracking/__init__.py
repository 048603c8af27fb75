"""What a run says of itself while it trains: metrics and events, to files, a terminal and W&B."""
