"""The page of `foveate page`: ask a model about a picture under several methods, side by side."""
