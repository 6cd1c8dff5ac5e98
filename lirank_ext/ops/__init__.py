"""One module per op, or per few that belong together: definition, checks, fake kernel, backward."""
