"""One file for each group of arms that are compared with each other."""
