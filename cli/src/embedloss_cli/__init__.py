"""The embedloss command line."""
