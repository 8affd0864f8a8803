"""The life of a learner: streams, scenes, the online loop and the scripts that train the built-in models."""
