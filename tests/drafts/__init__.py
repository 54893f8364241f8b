"""Methods written on the public seams alone, to show how little one takes; not part of the package."""
