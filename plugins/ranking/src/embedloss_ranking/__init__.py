"""embedloss plugin: multiple negatives ranking, GIST and mega-batch margin losses."""
