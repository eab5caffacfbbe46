"""Programs that keep files of the repository in step with the code."""
