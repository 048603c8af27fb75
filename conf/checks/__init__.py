"""Rules that need two settings or more, as generators of findings, which are all reported at once; or two configs."""
