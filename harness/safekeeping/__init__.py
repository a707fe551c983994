"""Safety on real boards: what is kept of a board so that it can be given back as it was found."""
