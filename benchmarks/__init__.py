"""Each benchmark compares a part of the pipeline with a bare bound of the same machine, in the same run."""
