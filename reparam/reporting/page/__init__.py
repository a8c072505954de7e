"""The report: one HTML page that needs nothing else, from facts without tensors."""
